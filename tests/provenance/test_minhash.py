"""MinHash: what counts as a word and a passage, and whether near-duplicates find each other."""

from __future__ import annotations

import random
import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.provenance import minhash


def text_of(words: list[str]) -> bytes:
    return " ".join(words).encode()


def random_words(generator: random.Random, count: int) -> list[str]:
    return ["".join(generator.choices("abcdefghijklmnop", k=generator.randint(2, 12))) for _ in range(count)]


def plain_shingles(text: bytes) -> set[tuple[bytes, ...]]:
    """The definition, without NumPy: for ASCII."""
    words = re.findall(rb"[a-z0-9_]+", text.lower())
    return set(zip(words, words[1:], words[2:], strict=False))


def plain_jaccard(one: bytes, other: bytes) -> float:
    a, b = plain_shingles(one), plain_shingles(other)
    return len(a & b) / len(a | b) if a | b else 0.0


def test_words_are_runs_of_letters_digits_and_what_is_beyond_ascii():
    text = "Hello, World! it's 42_x caf\u00e9 \u4f60\u597d \u201cquoted\u201d\u2014end".encode()
    found = minhash.words(text)
    shown = [text[a:b].decode() for a, b in zip(found.starts, found.ends, strict=True)]
    assert shown == ["Hello", "World", "it", "s", "42_x", "caf\u00e9", "\u4f60", "\u597d", "quoted", "end"]


def test_case_and_punctuation_do_not_count_but_every_letter_of_a_word_does():
    assert (minhash.words(b"Say: FRIEND").hashes == minhash.words(b"say friend").hashes).all()
    words = [b"a" * n for n in range(1, 33)] + [b"a" * n + b"b" for n in range(31)]
    hashes = [int(minhash.words(word).hashes[0]) for word in words]
    assert len(set(hashes)) == len(words)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_are_refused_and_words_lie_inside_and_in_order(text: bytes):
    found = minhash.words(text)
    edges = np.stack((found.starts, found.ends), axis=1).ravel()
    assert (np.diff(edges) >= 0).all()
    assert (found.starts < found.ends).all()
    assert not len(edges) or edges[-1] <= len(text)


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"one", b"two", b"three", b"four", b"five"]), max_size=30), st.data())
def test_jaccard_is_that_of_the_sets_of_three_words(words: list[bytes], data: st.DataObject):
    one = b" ".join(words)
    other = b", ".join(data.draw(st.permutations(words)))
    if len(words) >= minhash.SHINGLE:
        found = minhash.jaccard(minhash.shingles(one), minhash.shingles(other))
        assert found == plain_jaccard(one, other)


def test_texts_of_one_and_two_words_can_be_compared_too():
    assert minhash.jaccard(minhash.shingles("yes"), minhash.shingles("Yes.")) == 1
    assert minhash.jaccard(minhash.shingles("yes"), minhash.shingles("no")) == 0
    assert minhash.jaccard(minhash.shingles(""), minhash.shingles("")) == 0


def test_passages_are_paragraphs_and_short_ones_are_left_out():
    long = text_of(random_words(random.Random(1), 40))
    text = long + b"\n\nshort one\n \n" + long + b"\nstill the same\xff" + long
    found = minhash.passages(text)
    parts = [text[a:b] for a, b in zip(found.starts, found.ends, strict=True)]
    assert parts == [long, long + b"\nstill the same", long]
    assert minhash.jaccard(found.of(0), minhash.shingles(long)) == 1
    assert len(minhash.passages(b"")) == len(minhash.passages(b"two words")) == 0


def test_a_long_text_is_cut_at_the_same_places_wherever_it_stands():
    generator = random.Random(2)
    long = text_of(random_words(generator, 6000))
    alone = {bytes(found) for found in cut(long)}
    moved = {bytes(found) for found in cut(text_of(random_words(generator, 100)) + b" " + long)}
    assert len(alone) > 10
    assert len(alone & moved) >= len(alone) - 2
    assert max(len(part.split()) for part in alone | moved) <= minhash.MAX_WORDS


def cut(text: bytes) -> list[bytes]:
    found = minhash.passages(text)
    return [text[a:b] for a, b in zip(found.starts, found.ends, strict=True)]


def test_a_text_that_repeats_one_word_is_cut_by_length():
    sizes = [len(part.split()) for part in cut(b"again " * 3000)]
    assert sum(sizes) == 3000 and max(sizes) <= minhash.MAX_WORDS


def edited(generator: random.Random, words: list[str], edits: int) -> list[str]:
    words = list(words)
    for _ in range(edits):
        words[generator.randrange(len(words))] = "".join(generator.choices("qrstuvwxyz", k=7))
    return words


def test_near_duplicates_above_08_share_a_band_and_strangers_do_not():
    generator = random.Random(3)
    found = near = strangers = 0
    for _ in range(300):
        words = random_words(generator, generator.randint(60, 200))
        one, other = text_of(words), text_of(edited(generator, words, generator.randint(1, len(words) // 20)))
        keys = minhash.bands(np.stack((minhash.signature(one), minhash.signature(other))))
        if plain_jaccard(one, other) >= 0.8:
            near += 1
            found += bool((keys[0] == keys[1]).any())
        stranger = minhash.bands(minhash.signature(text_of(random_words(generator, 100)))[None])
        strangers += bool((keys[0] == stranger[0]).any())
    assert near > 100
    assert found / near >= 0.99
    assert strangers == 0


def test_signatures_estimate_the_similarity():
    generator = random.Random(4)
    errors = []
    for _ in range(200):
        words = random_words(generator, 150)
        one, other = text_of(words), text_of(edited(generator, words, generator.randint(0, 40)))
        estimated = minhash.estimate(minhash.signature(one), minhash.signature(other))
        errors.append(estimated - plain_jaccard(one, other))
    assert abs(sum(errors) / len(errors)) < 0.02
    assert max(map(abs, errors)) < 0.25


def test_signatures_of_many_texts_equal_those_of_each(monkeypatch):
    monkeypatch.setattr(minhash, "_ROWS", 3)
    generator = random.Random(5)
    sets = [minhash.shingles(text_of(random_words(generator, generator.randint(0, 50)))) for _ in range(10)]
    offsets = np.concatenate(([0], np.cumsum([len(one) for one in sets])))
    together = minhash.signatures(np.concatenate(sets), offsets)
    alone = [minhash.signatures(one, np.array([0, len(one)])) for one in sets]
    assert (together == np.concatenate(alone)).all()
