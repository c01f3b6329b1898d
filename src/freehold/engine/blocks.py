"""Pages of the KV cache: who may have how many. Knows nothing of tensors, sequences or tokens' values."""

from __future__ import annotations

from freehold.kernels.program import PAGE


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE)


class PageAllocator:
    """Hands out page numbers 0 .. total-1 and counts who holds them.

    A page that nobody holds is free, unless its content is kept: then it is idle until it is shared again or forgotten.
    """

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"a KV cache needs at least one page, got {total}")
        self._free = list(range(total - 1, -1, -1))
        self._holders = [0] * total
        self._kept = bytearray(total)
        self._idle = 0

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
        return self.total - self.free - self._idle

    @property
    def available(self) -> int:
        """Pages nobody holds: free, or idle."""
        return self.free + self._idle

    def take(self) -> int | None:
        """A free page, now held once; None when there is none."""
        if not self._free:
            return None
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more holder of a page that is in use or kept."""
        if self._holders[page] == 0 and not self._kept[page]:
            raise ValueError(f"page {page} is free and can't be shared")
        self._idle -= self._holders[page] == 0
        self._holders[page] += 1

    def keep(self, page: int) -> None:
        """Don't free a page that is in use when its last holder is gone."""
        if self._holders[page] == 0:
            raise ValueError(f"page {page} is in nobody's use and can't be kept")
        self._kept[page] = 1

    def idle(self, page: int) -> bool:
        """Whether a page is kept and nobody holds it."""
        return bool(self._kept[page]) and self._holders[page] == 0

    def forget(self, page: int) -> None:
        """Keep a page no longer; it is free at once if nobody holds it."""
        if not self._kept[page]:
            raise ValueError(f"page {page} is not kept")
        self._kept[page] = 0
        if self._holders[page] == 0:
            self._idle -= 1
            self._free.append(page)

    def release(self, page: int) -> None:
        """One holder less; the last one frees the page unless it is kept."""
        if self._holders[page] == 0:
            raise ValueError(f"page {page} is already free")
        self._holders[page] -= 1
        if self._holders[page] == 0 and self._kept[page]:
            self._idle += 1
        elif self._holders[page] == 0:
            self._free.append(page)
