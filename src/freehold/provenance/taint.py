"""Whether an answer may be trained on: by who wrote it, and by whose words it was made from (rules R7, R10, R12).

    barred    written, in part or whole, by a source whose terms bar training
    tainted   written by one whose terms allow it, but after or from the words of one whose terms don't
    unknown   somebody's terms, or the origin of an assistant's turn, are not known
    clean     none of that

An assistant's turn is matched with the answers that were recorded: first as the same place of the same conversation, then
by its text. All other turns are searched for recorded words of sources that are not clean. What is not clean passes on:
an answer made from a tainted one is tainted. Knows no SQL; what was recorded comes from a `Known`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from freehold.provenance.exchanges import Begun, Ended, Message, Part
from freehold.provenance.overlap import LARGEST, NEAR, Passages, Prints, Runs, similarity, winnow
from freehold.provenance.terms import Source, Terms

State = Literal["clean", "unknown", "tainted", "barred"]
ORDER: tuple[State, ...] = ("clean", "unknown", "tainted", "barred")
MOST_REASONS = 16
"""Kept of one record; the first of them decide nothing less than all."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer that was recorded: its record and what it was judged."""

    record: str
    state: str


@dataclass(slots=True)
class Known:
    """What is recorded, as far as these exchanges may have to do with it.

    Args:
        outputs: answers by chain and by tag.
        runs: a record that is not clean, by run of words.
        bands: passages by band key.
        passages: (record, signature) of records that are not clean.
    """

    outputs: dict[bytes, list[Said]] = field(default_factory=dict)
    runs: dict[int, str] = field(default_factory=dict)
    bands: dict[int, list[int]] = field(default_factory=dict)
    passages: dict[int, tuple[str, bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The state of an answer, why, and the records whose answers are part of its prompt."""

    state: State
    because: tuple[dict[str, Any], ...]
    parents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """An assistant's turn of a prompt: its number, its place in the conversation, its tag and text."""

    turn: int
    chain: bytes
    tag: bytes
    message: Message


def links(messages: Sequence[Message], prints: Prints) -> tuple[list[Link], bytes]:
    """The assistant's turns of a prompt, and the chain of the whole prompt, to which the answer will be added."""
    found, chain = [], b""
    for turn, message in enumerate(messages):
        chain = prints.chain(chain, message)
        if message.role == "assistant":
            found.append(Link(turn, chain, prints.tag(message), message))
    return found, chain


def judge(
    begun: Begun,
    ended: Ended,
    sources: Sequence[tuple[Part, Source, Terms]],
    turns: Sequence[Link],
    known: Known,
    prints: Prints,
) -> Judgement:
    """What the answer is.

    Args:
        sources: the parts whose words reached the client, with the terms they were under.
        turns: of the prompt, from `links`.
    """
    found: list[tuple[State, dict[str, Any]]] = list(_by_terms(sources))
    if ended.outcome == "interrupted":
        found.append(("unknown", {"rule": "R10", "what": "the gateway was killed while it answered"}))
    parents: dict[str, None] = {}
    matched = set()
    for link in turns:
        said = _said(link, known)
        parents.update(dict.fromkeys(s.record for s in said))
        if said:
            matched.add(link.turn)
            found += _by_turn(link, said)
    for turn, message in enumerate(begun.messages):
        if turn not in matched:
            reasons = list(_by_overlap(turn, message, known, prints))
            if message.role == "assistant" and not reasons:
                what = "an assistant's turn that no record accounts for"
                reasons = [("unknown", {"rule": "R10", "what": what, "turn": turn})]
            found += reasons
    state: State = max((state for state, _ in found), key=ORDER.index, default="clean")
    found.sort(key=lambda reason: -ORDER.index(reason[0]))
    return Judgement(state, tuple(reason for _, reason in found[:MOST_REASONS]), tuple(parents))


def subtract(answer: str, prompt: Sequence[Message], prints: Prints) -> Runs:
    """The runs of an answer to keep: winnowed, without those that it took from its own prompt."""
    given = {int(run) for message in prompt for run in prints.runs(message.words)}
    kept: Runs = winnow(prints.runs(answer))
    return kept if not given else kept[[int(run) not in given for run in kept]]


def _by_terms(sources: Sequence[tuple[Part, Source, Terms]]) -> Iterator[tuple[State, dict[str, Any]]]:
    for part, _, terms in sources:
        if terms.training == "barred":
            yield "barred", {"rule": "R7", "what": f"written by {part.backend}: {terms.why}"}
        elif terms.training == "unknown":
            yield "unknown", {"rule": "R10", "what": f"written by {part.backend}: {terms.why}"}


def _said(link: Link, known: Known) -> list[Said]:
    """The recorded answers that this turn is: those of the same conversation, else all of the same text."""
    return known.outputs.get(link.chain) or known.outputs.get(link.tag) or []


def _by_turn(link: Link, said: Sequence[Said]) -> Iterator[tuple[State, dict[str, Any]]]:
    for other in said:
        if other.state != "clean":
            state: State = "unknown" if other.state == "unknown" else "tainted"
            what = f"made after an answer that is {other.state}"
            yield state, {"rule": "R12", "what": what, "turn": link.turn, "record": other.record}


def _by_overlap(turn: int, message: Message, known: Known, prints: Prints) -> Iterator[tuple[State, dict[str, Any]]]:
    if len(message.words) > LARGEST:
        what = f"only the first {LARGEST} bytes of this turn were compared"
        yield "unknown", {"rule": "R10", "what": what, "turn": turn}
    if known.runs:
        hits: dict[str, int] = {}
        for run in prints.runs(message.words).tolist():
            if (record := known.runs.get(run)) is not None:
                hits[record] = hits.get(record, 0) + 1
        for record, count in hits.items():
            what = f"quotes {count} runs of words of an answer that is not clean"
            yield "tainted", {"rule": "R12", "what": what, "turn": turn, "record": record}
    if known.bands:
        for record, likeness in _near(prints.passages(message.words), known).items():
            what = f"holds a passage {likeness:.2f} like one of an answer that is not clean"
            yield "tainted", {"rule": "R12", "what": what, "turn": turn, "record": record}


def _near(passages: Passages, known: Known) -> dict[str, float]:
    """Records with a passage like one of these."""
    found: dict[str, float] = {}
    for signature, keys in zip(passages.signatures, passages.bands, strict=True):
        for passage in {p for key in keys for p in known.bands.get(key, ())}:
            record, other = known.passages[passage]
            if (likeness := similarity(signature, other)) >= NEAR:
                found[record] = max(likeness, found.get(record, 0.0))
    return found
