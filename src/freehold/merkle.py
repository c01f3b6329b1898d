"""Merkle trees as in RFC 6962 and RFC 9162 (section 2.1): roots, inclusion proofs, consistency proofs, and their checks.

A tree is known by the hashes of its full subtrees: node (level, i) covers the 2^level leaves from i * 2^level on. They
never change once their leaves are there, so they can be kept anywhere: `Tree` keeps them in memory; who keeps them in a
database asks `addresses` which ones a question needs and hands them in. Proofs are lists of hashes of 32 bytes.

Knows hashes only: nothing of what a leaf means, of files, or of signatures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

Address = tuple[int, int]
"""(level, index) of a full subtree."""
Span = tuple[int, int]
"""Leaves from the first to before the second."""
Proof = list[bytes]


class Nodes(Protocol):
    """Hashes of full subtrees: a dictionary, or a `Tree`."""

    def __getitem__(self, address: Address, /) -> bytes: ...


EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """The hash of one leaf: SHA-256(0x00 || data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node: SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaf_hashes: Iterable[bytes]) -> bytes:
    """The root of the tree over these leaf hashes; of none, the hash of the empty string."""
    stack: list[tuple[int, bytes]] = []  # full subtrees from left to right, each higher than the next
    for leaf in leaf_hashes:
        level, value = 0, leaf
        while stack and stack[-1][0] == level:
            value = node_hash(stack.pop()[1], value)
            level += 1
        stack.append((level, value))
    return _fold([value for _, value in stack])


def inclusion_spans(index: int, size: int) -> list[Span]:
    """The leaves under each hash of the inclusion proof of leaf `index` in a tree of `size`, lowest first.

    Raises:
        ValueError: there is no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"expected a leaf from 0 to {size - 1}, found {index}")
    spans: list[Span] = []
    first, last = 0, size
    while last - first > 1:
        middle = first + _split(last - first)
        if index < middle:
            spans.append((middle, last))
            last = middle
        else:
            spans.append((first, middle))
            first = middle
    return spans[::-1]


def consistency_spans(old: int, new: int) -> list[Span]:
    """The leaves under each hash of the proof that the tree of `new` leaves begins with the one of `old`.

    Raises:
        ValueError: `old` is negative or larger than `new`.
    """
    if not 0 <= old <= new:
        raise ValueError(f"expected sizes 0 <= old <= new, found {old} and {new}")
    if old in (0, new):
        return []
    spans: list[Span] = []
    first, last = 0, new
    while old != last:
        middle = first + _split(last - first)
        if old <= middle:
            spans.append((middle, last))
            last = middle
        else:
            spans.append((first, middle))
            first = middle
    if first:  # else the old root itself, which the verifier has
        spans.append((first, last))
    return spans[::-1]


def addresses(spans: Iterable[Span]) -> list[Address]:
    """The full subtrees whose hashes give those of the spans, from left to right within each."""
    found: list[Address] = []
    for first, last in spans:
        while first < last:
            level = (last - first).bit_length() - 1
            found.append((level, first >> level))
            first += 1 << level
    return found


def span_hash(span: Span, nodes: Nodes) -> bytes:
    """The hash over the leaves of a span, from the full subtrees that `addresses` names."""
    return _fold([nodes[address] for address in addresses([span])])


def completed(index: int) -> list[Address]:
    """The inner nodes that leaf `index` completes when it is appended, lowest first."""
    found: list[Address] = []
    level = 1
    while (index + 1) % (1 << level) == 0:
        found.append((level, index >> level))
        level += 1
    return found


class Tree:
    """A growing tree in memory.

    Args:
        leaf_hashes: its first leaves.
    """

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = [[]]  # full subtrees by level, in their order
        for leaf in leaf_hashes:
            self.append(leaf)

    def append(self, leaf: bytes) -> int:
        """Adds a leaf hash and gives its index."""
        index = self.size
        self._levels[0].append(leaf)
        for level, i in completed(index):
            if level == len(self._levels):
                self._levels.append([])
            below = self._levels[level - 1]
            self._levels[level].append(node_hash(below[2 * i], below[2 * i + 1]))
        return index

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return len(self._levels[0])

    def __getitem__(self, address: Address) -> bytes:
        level, index = address
        return self._levels[level][index]

    def root(self, size: int | None = None) -> bytes:
        """The root over the first `size` leaves, by default all.

        Raises:
            ValueError: there are not as many.
        """
        size = self._known(self.size if size is None else size)
        return span_hash((0, size), self)

    def inclusion(self, index: int, size: int | None = None) -> Proof:
        """The proof that leaf `index` is in the tree of the first `size` leaves.

        Raises:
            ValueError: there is no such leaf, or not as many.
        """
        size = self._known(self.size if size is None else size)
        return [span_hash(span, self) for span in inclusion_spans(index, size)]

    def consistency(self, old: int, new: int | None = None) -> Proof:
        """The proof that the first `new` leaves begin with the first `old`.

        Raises:
            ValueError: the sizes are not in order, or there are not as many leaves.
        """
        new = self._known(self.size if new is None else new)
        return [span_hash(span, self) for span in consistency_spans(old, new)]

    def node(self, level: int, index: int) -> bytes | None:
        """The hash of a full subtree, None where there is none."""
        known = 0 <= level < len(self._levels) and 0 <= index < len(self._levels[level])
        return self._levels[level][index] if known else None

    @property
    def inner(self) -> int:
        """How many full subtrees of two leaves or more there are."""
        return sum(map(len, self._levels[1:]))

    def _known(self, size: int) -> int:
        if not 0 <= size <= self.size:
            raise ValueError(f"expected a size from 0 to {self.size}, found {size}")
        return size


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected_root: bytes) -> bool:
    """Whether the proof shows that the leaf hash is number `index` in the tree of that size and root (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    node, last, value = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            value = node_hash(sibling, value)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            value = node_hash(value, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and value == expected_root


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows that the tree of `new` leaves begins with the tree of `old` (RFC 9162, 2.1.4.2).

    The empty tree is the beginning of every tree, and proves nothing.
    """
    if not 0 <= old <= new:
        return False
    if old == 0:
        return not proof and old_root == EMPTY_ROOT
    if old == new:
        return not proof and old_root == new_root
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old_value = new_value = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old_value, new_value = node_hash(sibling, old_value), node_hash(sibling, new_value)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            new_value = node_hash(new_value, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and old_value == old_root and new_value == new_root


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def _fold(subtrees: Sequence[bytes]) -> bytes:
    """One hash of neighbouring full subtrees, each smaller than the one on its left."""
    if not subtrees:
        return EMPTY_ROOT
    value = subtrees[-1]
    for left in reversed(subtrees[:-1]):
        value = node_hash(left, value)
    return value
