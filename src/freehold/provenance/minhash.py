"""MinHash of texts: words, shingles, signatures and the bands by which near-duplicates find each other.

The only place that knows rensa. A text is a set of shingles (runs of three words, without case and punctuation); two texts
are near-duplicates when the Jaccard similarity of their sets is high. Signatures find the candidates, `jaccard` settles
it exactly. It knows nothing of files, indexes or the ledger: bytes in, arrays out.

Sources: A. Broder, On the resemblance and containment of documents (1997), for shingles and MinHash; Leskovec, Rajaraman,
Ullman, Mining of Massive Datasets, chapter 3, for bands.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

SHINGLE = 3  # words
PERMUTATIONS, BANDS = 64, 16  # found at Jaccard 0.8 with 1 - (1 - 0.8^4)^16 = 0.9998, at 0.5 with 0.64
MIN_WORDS = 12  # shorter passages say nothing about where they are from
LONG_WORDS, CUT_EVERY, MAX_WORDS = 512, 256, 1024  # paragraphs longer than LONG_WORDS are cut by their content
SEPARATOR = 0xFF  # a byte no UTF-8 has: what stands on its two sides never shares a passage
SEED = 42
ALGORITHM = f"rensa-{RMinHash.ALGORITHM_VERSION}/words-1/{SHINGLE}/{PERMUTATIONS}/{BANDS}"
"""Signatures of different algorithms must not be compared: whoever stores them stores this beside them."""

Hashes = NDArray[np.uint64]
Positions = NDArray[np.int64]

_ROWS = 2048  # signatures that pass through Python lists at a time: more makes the garbage collector work
_WORD_BYTES = 32  # of longer words the beginning counts
_MIX = tuple(np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93))
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)


class Words(NamedTuple):
    """Words of a text, each with where it begins and ends (bytes) and a hash; `breaks` counts line ends before it."""

    starts: Positions
    ends: Positions
    hashes: Hashes
    breaks: Positions


class Passages(NamedTuple):
    """Passages of a text: their bytes are `starts[i]:ends[i]`, their shingles `shingles[offsets[i]:offsets[i + 1]]`."""

    starts: Positions
    ends: Positions
    shingles: Hashes
    offsets: Positions

    def __len__(self) -> int:
        return len(self.starts)

    def of(self, index: int) -> Hashes:
        """The set of shingles of one passage, sorted."""
        return np.unique(self.shingles[self.offsets[index] : self.offsets[index + 1]])


def words(text: bytes) -> Words:
    """The words of a text: runs of letters, digits, `_` and what is beyond ASCII, in lower case.

    Characters of three or four UTF-8 bytes (CJK among them) are words of their own, U+2000-U+2FFF (dashes, curly quotes)
    separates. Bytes need not be valid UTF-8.
    """
    raw = np.frombuffer(text, np.uint8)
    letters = _letters(raw)
    known = letters != 0
    begins = known.copy()
    begins[1:] &= ~known[:-1] | (raw[1:] >= 0xE0)
    finishes = known.copy()
    finishes[:-1] &= ~known[1:] | begins[1:]
    starts, ends = np.flatnonzero(begins), np.flatnonzero(finishes) + 1
    lines = np.cumsum(_BREAKS[raw], dtype=np.int32)
    return Words(starts, ends, _word_hashes(letters, starts, ends - starts), lines[starts].astype(np.int64))


def passages(text: bytes, minimum: int = MIN_WORDS) -> Passages:
    """The paragraphs of a text (parted by blank lines or `SEPARATOR`) that have at least `minimum` words.

    Paragraphs of more than LONG_WORDS are cut where their words say so, so that the same text is cut at the same places
    wherever it stands.
    """
    found = words(text)
    count = len(found.starts)
    if count < SHINGLE:
        return _NO_PASSAGES
    first = np.empty(count, np.bool_)  # does a passage begin at this word?
    first[0] = True
    first[1:] = np.diff(found.breaks) >= 2
    long = _sizes(first) > LONG_WORDS
    first |= long & (found.hashes % np.uint64(CUT_EVERY) == 0)
    starts = np.flatnonzero(first)
    first |= (np.arange(count) - starts[np.cumsum(first) - 1]) % MAX_WORDS == 0
    starts = np.flatnonzero(first)
    stops = np.append(starts[1:], count)
    kept = stops - starts >= max(minimum, SHINGLE)
    starts, stops = starts[kept], stops[kept]
    sizes = stops - starts - (SHINGLE - 1)
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    which = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], sizes)
    return Passages(found.starts[starts], found.ends[stops - 1], _shingle_hashes(found.hashes)[which], offsets)


def shingles(text: bytes | str) -> Hashes:
    """The set of shingles of a whole text, sorted; a text of one or two words has one."""
    found = words(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text).hashes
    if 0 < len(found) < SHINGLE:
        found = np.concatenate((found, np.zeros(SHINGLE - len(found), np.uint64)))
    return np.unique(_shingle_hashes(found))


def signatures(flat: Hashes, offsets: Positions) -> NDArray[np.uint32]:
    """MinHash signatures.

    Args:
        flat: shingles of all texts, one after another.
        offsets: int64 [texts + 1]: text i has `flat[offsets[i]:offsets[i + 1]]`.

    Returns:
        uint32 [texts, PERMUTATIONS]; a text without shingles has all ones.
    """
    signed = np.empty((len(offsets) - 1, PERMUTATIONS), np.uint32)
    for at in range(0, len(signed), _ROWS):
        rows = np.ascontiguousarray(offsets[at : at + _ROWS + 1], np.uint64)
        part = np.ascontiguousarray(flat[rows[0] : rows[-1]])
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(part, rows - rows[0], PERMUTATIONS, SEED)
        numbers = itertools.chain.from_iterable(matrix.to_rows())  # a quarter of the time np.array takes for lists
        signed[at : at + _ROWS] = np.fromiter(numbers, np.uint32, (len(rows) - 1) * PERMUTATIONS).reshape(
            -1, PERMUTATIONS
        )
    return signed


def signature(text: bytes | str) -> NDArray[np.uint32]:
    """The signature of one text as a whole: uint32 [PERMUTATIONS]."""
    found = shingles(text)
    signed: NDArray[np.uint32] = signatures(found, np.array([0, len(found)], np.int64))[0]
    return signed


def bands(signed: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Keys of signatures: uint32 [texts, BANDS]. Two texts that share one (in the same column) are candidates."""
    rows = signed.reshape(len(signed), BANDS, PERMUTATIONS // BANDS).astype(np.uint64)
    keys = np.zeros(rows.shape[:2], np.uint64)
    for i in range(rows.shape[2]):
        keys = _stir(keys * _MIX[0] + rows[:, :, i] + _MIX[1])
    return (keys >> np.uint64(32)).astype(np.uint32)


def estimate(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    """Jaccard similarity as two signatures estimate it; its standard error is up to 1 / (2 sqrt(PERMUTATIONS))."""
    return float(np.mean(one == other))


def jaccard(one: Hashes, other: Hashes) -> float:
    """Exact Jaccard similarity of two sets of shingles as `shingles` and `Passages.of` give them; 0 for empty ones."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    union = len(one) + len(other) - common
    return common / union if union else 0.0


def _letters(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes of words in lower case; 0 where there is none."""
    letters = _LOWER[raw]
    marks = np.flatnonzero(raw == 0xE2)
    for i in range(3):
        letters[np.minimum(marks + i, len(raw) - 1)] = 0
    return letters


def _word_hashes(letters: NDArray[np.uint8], starts: Positions, sizes: Positions) -> Hashes:
    """A hash of each word: its bytes are read eight at a time, from an array padded so that this stays inside."""
    padded = np.concatenate((letters, np.zeros(_WORD_BYTES + 8, np.uint8)))
    eights = np.ndarray(len(padded) - 7, np.uint64, padded.data, strides=(1,))
    hashes = _stir((eights[starts] & _MASKS[np.minimum(sizes, 8)]) * _MIX[0] + sizes.astype(np.uint64))
    for at in range(8, _WORD_BYTES, 8):
        longer = np.flatnonzero(sizes > at)
        part = eights[starts[longer] + at] & _MASKS[np.minimum(sizes[longer] - at, 8)]
        hashes[longer] = _stir(hashes[longer] * _MIX[1] + part)
    return hashes


def _shingle_hashes(found: Hashes) -> Hashes:
    """One hash for each run of SHINGLE words; none for fewer words."""
    count = max(0, len(found) - SHINGLE + 1)
    mixed = np.zeros(count, np.uint64)
    for i in range(SHINGLE):
        mixed = mixed * _MIX[2] + found[i : i + count]
    return _stir(mixed)


def _stir(values: Hashes) -> Hashes:
    """Spread every bit over all others, in place (Stafford's variant of the MurmurHash3 finalizer)."""
    values ^= values >> np.uint64(32)
    values *= _MIX[3]
    values ^= values >> np.uint64(29)
    return values


def _sizes(first: NDArray[np.bool_]) -> Positions:
    """For each word the number of words of its paragraph."""
    starts = np.flatnonzero(first)
    sizes = np.diff(np.append(starts, len(first)))
    return np.repeat(sizes, sizes)


@functools.cache
def _tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(byte -> its lower case if it is of a word, else 0; byte -> how many line ends it counts for)."""
    lower = np.zeros(256, np.uint8)
    for byte in range(0x80, SEPARATOR):
        lower[byte] = byte
    for letter in "abcdefghijklmnopqrstuvwxyz0123456789_":
        lower[ord(letter)] = lower[ord(letter.upper())] = ord(letter)
    breaks = np.zeros(256, np.uint8)
    breaks[ord("\n")], breaks[SEPARATOR] = 1, 2
    return lower, breaks


_LOWER, _BREAKS = _tables()
_NO_PASSAGES = Passages(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(1, np.int64))
