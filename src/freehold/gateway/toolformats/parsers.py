"""Calls out of a model's text, as it comes. One short generator per family; broken calls come out as text.

Knows no engine; the marks are `marks.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from freehold.gateway.toolformats import marks
from freehold.gateway.toolformats.marks import Family
from freehold.gateway.toolformats.source import (
    Ended,
    Malformed,
    Piece,
    Reads,
    Source,
    call_arguments,
    call_object,
)

KEYS = ("arguments", "parameters")
Parse: TypeAlias = Callable[[Source], Reads[None]]


class CallParser:
    """Feeds text through a family's parser."""

    def __init__(self, family: Family) -> None:
        self._source = Source()
        self._reading = _PARSERS[family.kind](self._source)
        self._over = False

    @property
    def outside(self) -> bool:
        """Whether the text just read lies outside of calls."""
        return self._source.outside

    def push(self, text: str) -> list[Piece]:
        """The pieces that are certain now."""
        self._source.unread += text
        return self._resume()

    def close(self) -> list[Piece]:
        """The rest, now that no more text comes; the markup of a call that was cut before its name is dropped."""
        self._source.ended = True
        return self._resume()

    def _resume(self) -> list[Piece]:
        source = self._source
        if self._over:
            source.unread = ""
        else:
            try:
                next(self._reading)
            except (StopIteration, Ended):
                self._over = True
        found, source.out = source.out, []
        return found


def _marked(source: Source, opening: tuple[str, ...], calls: Callable[[Source, str], Reads[None]]) -> Reads[None]:
    """Text with calls behind marks, until the end."""
    while (mark := (yield from source.until(opening))) is not None:
        calls_before = source.calls
        try:
            yield from calls(source, mark)
        except Malformed:
            source.recover(mark, calls_before)
        else:
            yield from source.space()


def _hermes(source: Source) -> Reads[None]:
    def one(source: Source, mark: str) -> Reads[None]:
        yield from source.space()
        yield from call_object(source, KEYS)
        yield from source.space()
        yield from source.begins(marks.TOOL_CLOSE)

    yield from _marked(source, (marks.TOOL_OPEN,), one)


def _llama(source: Source) -> Reads[None]:
    def some(source: Source, mark: str) -> Reads[None]:
        yield from source.space()
        yield from call_object(source, KEYS)
        yield from source.space()
        while (yield from source.begins(";")):
            yield from source.space()
            yield from call_object(source, KEYS)
            yield from source.space()

    yield from source.space()
    if (yield from source.peek()) == "{":  # a call without its tag
        source.outside = False
        try:
            yield from some(source, "")
        except Malformed:
            source.recover("", 0)
    yield from _marked(source, (marks.PYTHON_TAG,), some)


def _deepseek(source: Source) -> Reads[None]:
    def one(source: Source) -> Reads[None]:
        head = (yield from source.upto(marks.CALL_SEP)).strip()
        yield from source.need(marks.CALL_SEP)
        fenced = head == "function"
        if fenced:
            head = (yield from source.upto("\n")).strip()
            yield from source.space()
            yield from source.need("```json")
        if not head:
            raise Malformed
        source.call(head)
        yield from source.space()
        yield from call_arguments(source)
        yield from source.space()
        if fenced:
            yield from source.begins("```")
            yield from source.space()
        yield from source.begins(marks.CALL_END)

    def some(source: Source, mark: str) -> Reads[None]:
        if mark == marks.CALLS_BEGIN:
            yield from source.space()
            yield from source.need(marks.CALL_BEGIN)
        yield from one(source)
        yield from source.space()
        while (yield from source.begins(marks.CALL_BEGIN)):
            yield from one(source)
            yield from source.space()
        yield from source.begins(marks.CALLS_END)

    yield from _marked(source, (marks.CALLS_BEGIN, marks.CALL_BEGIN), some)


def _mistral(source: Source) -> Reads[None]:
    def some(source: Source, mark: str) -> Reads[None]:
        yield from source.space()
        if (yield from source.begins("[")):
            yield from source.space()
            while not (yield from source.begins("]")):
                yield from call_object(source, KEYS)
                yield from source.space()
                yield from source.begins(",")
                yield from source.space()
            return
        name = (yield from source.upto(marks.MISTRAL_ID, marks.MISTRAL_ARGS, "{")).strip()
        if (yield from source.begins(marks.MISTRAL_ID)):
            yield from source.upto(marks.MISTRAL_ARGS)
        yield from source.begins(marks.MISTRAL_ARGS)
        if not name:
            raise Malformed
        source.call(name)
        yield from source.space()
        yield from call_arguments(source)

    yield from _marked(source, (marks.MISTRAL_CALLS,), some)


_PARSERS: dict[str, Parse] = {"hermes": _hermes, "llama": _llama, "deepseek": _deepseek, "mistral": _mistral}
