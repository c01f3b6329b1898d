"""Finding a text again where it is quoted: keyed hashes of runs of words, and MinHash signatures of passages.

Exact overlap: every run of `RUN` words has a 64-bit hash; of a recorded text every `WINDOW`-th or so is kept (winnowing:
Schleimer, Wilkerson, Aiken 2003), chosen so that any `RUN + WINDOW - 1` = 15 words in common are found, whatever stands
around them. Near-duplicates: passages (see `minhash.py`) with a similarity of about 0.5
or more, which changed words leave where no 15 stand together any more. Texts of fewer than `RUN`
words say nothing about where they are from.

Hashes are keyed with the ledger's secret: without it nobody can test whether a text was recorded. Knows no database.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from freehold.provenance import minhash
from freehold.provenance.exchanges import Message

RUN = 8
WINDOW = 8
NEAR = 0.5
"""Similarity that a signature must estimate for two passages to count as near-duplicates."""
LARGEST = 1 << 20
"""Bytes of a text that are looked at; whoever sends more gets the beginning checked and is told so in the record."""
REMEMBERED = 4 << 20
"""Bytes of fingerprints that are remembered of each kind: those of some 25 conversations of 100 kB, which take 10 ms each to
make again. A server's memory grows until they are reached (`python bench/load.py`)."""

ENTRY = 256  # bytes that an entry takes beside what is counted

T = TypeVar("T")
Runs = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Passages:
    """Of one text: signatures of its passages and the band keys by which they are looked up."""

    signatures: tuple[bytes, ...]
    bands: tuple[tuple[int, ...], ...]


class Latest(Generic[T]):
    """What was made of the latest texts, up to so many bytes; texts are known by their hashes, not kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._kept: OrderedDict[bytes, tuple[T, int]] = OrderedDict()

    def get(self, text: str, make: Callable[[str], T], size: Callable[[T], int]) -> T:
        """What `make` makes of a text, now or lately."""
        key = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
        if (known := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return known[0]
        made = make(text)
        cost = size(made) + ENTRY
        self._kept[key] = made, cost
        self._size += cost
        while self._size > self._most:
            self._size -= self._kept.popitem(last=False)[1][1]
        return made


class Prints:
    """Makes fingerprints; remembers the latest, because a conversation sends its turns again and again.

    Args:
        secret: of the ledger.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = hashlib.blake2b(b"tags", key=secret, digest_size=32).digest()
        self._factor = np.uint64(int.from_bytes(hashlib.blake2b(b"runs", key=secret, digest_size=8).digest()) | 1)
        self._runs_of: Latest[Runs] = Latest(REMEMBERED)
        self._passages_of: Latest[Passages] = Latest(REMEMBERED)

    def runs(self, text: str) -> Runs:
        """Hashes of all runs of `RUN` words, in their order."""
        return self._runs_of.get(text, self._runs, lambda found: found.nbytes)

    def passages(self, text: str) -> Passages:
        """Signatures of a text's passages."""
        return self._passages_of.get(text, self._passages, lambda found: sum(map(len, found.signatures)) * 3)

    def tag(self, message: Message) -> bytes:
        """What an assistant said, whatever its white space: equal for equal answers."""
        calls = [f"\0{call.name}\0{''.join(call.arguments.split())}" for call in message.calls]
        return self._hash(" ".join(message.content.split()) + "".join(calls))

    def chain(self, before: bytes, message: Message) -> bytes:
        """The conversation up to and including a message, from the one before it."""
        return self._hash(before + message.role.encode() + b"\0" + self.tag(message))

    def _hash(self, data: str | bytes) -> bytes:
        raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
        return hashlib.blake2b(raw, key=self._key, digest_size=16).digest()

    def _runs(self, text: str) -> Runs:
        found = minhash.words(_bytes(text)).hashes
        count = len(found) - RUN + 1
        if count < 1:
            return np.zeros(0, np.int64)
        mixed = np.zeros(count, np.uint64)
        for i in range(RUN):
            mixed = mixed * self._factor + found[i : i + count]
        mixed ^= mixed >> np.uint64(31)
        return (mixed * self._factor).view(np.int64)

    def _passages(self, text: str) -> Passages:
        data = _bytes(text)
        found = minhash.passages(data)
        if not len(found):
            return Passages((), ())
        signed = minhash.signatures(found.shingles, found.offsets)
        if len(found) > 1:
            signed = np.vstack([signed, minhash.signature(data)])
        keys = minhash.bands(signed).astype(np.int64) | (np.arange(minhash.BANDS, dtype=np.int64) << 32)
        return Passages(
            tuple(row.astype("<u4").tobytes() for row in signed), tuple(tuple(map(int, row)) for row in keys)
        )


def winnow(runs: Runs) -> Runs:
    """The runs to keep of a recorded text: the least of each window of `WINDOW`, each once."""
    if len(runs) <= WINDOW:
        return np.unique(runs.min(keepdims=True)) if len(runs) else runs
    windows = np.lib.stride_tricks.sliding_window_view(runs, WINDOW)
    return np.unique(windows.min(axis=1))


def similarity(one: bytes, other: bytes) -> float:
    """Of two passages, as their signatures estimate it."""
    return minhash.estimate(np.frombuffer(one, "<u4"), np.frombuffer(other, "<u4"))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")[:LARGEST]
