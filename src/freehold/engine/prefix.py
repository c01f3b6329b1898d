"""Prompts that begin alike share their pages: a radix tree over whole pages of the KV cache.

A page is known by the tokens in it and all that come before it. Pages that no sequence holds any more stay until their
room is needed, the least recently used first. What lies in a page does not depend on who computed it, so answers are
the same with and without. Knows no sequences, tensors or requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from freehold.engine.blocks import PageAllocator
from freehold.kernels.program import PAGE


@dataclass(slots=True, eq=False)
class _Node:
    page: int
    parent: _Node | None
    key: tuple[int, ...]
    children: dict[tuple[int, ...], _Node] = field(default_factory=dict)


class PrefixCache:
    """Which pages hold which beginnings of prompts."""

    def __init__(self, pages: PageAllocator) -> None:
        self._pages = pages
        self._root = _Node(-1, None, ())
        self._used: OrderedDict[int, _Node] = OrderedDict()  # by page; the least recently used first

    def match(self, tokens: Sequence[int]) -> list[int]:
        """Pages that hold the longest known beginning of `tokens`, whole pages only; each is held once more from now on."""
        path = []
        node = self._root
        for key in _keys(tokens):
            child = node.children.get(key)
            if child is None:
                break
            node = child
            path.append(node)
        for found in path:
            self._pages.share(found.page)
        self._touch(path)
        return [found.page for found in path]

    def keep(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Remember that `pages` hold `tokens`, of which only whole pages count; a beginning known already keeps its page."""
        path = []
        node = self._root
        for key, page in zip(_keys(tokens), pages, strict=False):
            child = node.children.get(key)
            if child is None:
                child = _Node(page, node, key)
                node.children[key] = child
                self._used[page] = child
                self._pages.keep(page)
            node = child
            path.append(node)
        self._touch(path)

    def evict(self) -> bool:
        """Give the page back that was used least recently, of those no sequence holds; False when there is none."""
        for page, node in self._used.items():
            if not node.children and self._pages.idle(page):
                assert node.parent is not None  # noqa: S101  (the root has no page)
                del node.parent.children[node.key], self._used[page]
                self._pages.forget(page)
                return True
        return False

    def _touch(self, path: list[_Node]) -> None:
        """Used now; beginnings count as used after what follows them, so that leaves go first."""
        for node in reversed(path):
            self._used.move_to_end(node.page)


def _keys(tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for begin in range(0, len(tokens) - PAGE + 1, PAGE):
        yield tuple(tokens[begin : begin + PAGE])
