"""What is remembered of texts: the latest, up to so many bytes."""

from __future__ import annotations

from freehold.provenance.overlap import ENTRY, RUN, Latest, Prints


def test_a_text_that_comes_again_is_not_read_again_and_the_oldest_are_forgotten_first() -> None:
    made: list[str] = []

    def make(text: str) -> bytes:
        made.append(text)
        return b"x" * 744

    kept: Latest[bytes] = Latest(3 * (744 + ENTRY))
    for text in ("a", "b", "c", "a", "d", "a", "b"):
        assert len(kept.get(text, make, len)) == 744
    assert made == ["a", "b", "c", "d", "b"]


def test_long_texts_are_remembered_by_what_they_take() -> None:
    kept: Latest[bytes] = Latest(10_000)
    sizes = {"short": 100, "long": 9_000, "longest": 50_000}
    made: list[str] = []

    def make(text: str) -> bytes:
        made.append(text)
        return b"x" * sizes[text]

    for text in ("short", "long", "short", "longest", "short", "long"):
        kept.get(text, make, len)
    assert made == ["short", "long", "longest", "short", "long"]
    assert kept._size <= 10_000


def test_fingerprints_are_the_same_from_memory() -> None:
    prints = Prints(b"secret")
    text = " ".join(f"word{i}" for i in range(RUN + 3))
    assert prints.runs(text).tolist() == prints.runs(text).tolist() == Prints(b"secret").runs(text).tolist()
    assert len(prints.runs(text)) == 4
    assert prints.passages(text) == Prints(b"secret").passages(text)
