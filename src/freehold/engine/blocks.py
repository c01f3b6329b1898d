"""Pages of the KV cache: who may have how many. Knows nothing of tensors, sequences or tokens' values."""

from __future__ import annotations

from freehold.kernels.program import PAGE


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE)


class PageAllocator:
    """Hands out page numbers 0 .. total-1 and counts who holds them; a page is free when nobody does."""

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"a KV cache needs at least one page, got {total}")
        self._free = list(range(total - 1, -1, -1))
        self._holders = [0] * total

    @property
    def total(self) -> int:
        """All pages."""
        return len(self._holders)

    @property
    def free(self) -> int:
        """Pages nobody holds."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Pages somebody holds."""
        return self.total - self.free

    def take(self) -> int | None:
        """A free page, now held once; None when there is none."""
        if not self._free:
            return None
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more holder of a page in use."""
        if self._holders[page] == 0:
            raise ValueError(f"page {page} is free and can't be shared")
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """One holder less; the last one frees the page."""
        if self._holders[page] == 0:
            raise ValueError(f"page {page} is already free")
        self._holders[page] -= 1
        if self._holders[page] == 0:
            self._free.append(page)
