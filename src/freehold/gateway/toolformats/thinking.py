"""Visible thinking, apart from the answer, as it comes. Knows the two marks and nothing else of a model."""

from __future__ import annotations

from freehold.gateway.toolformats.source import begun


class Thinking:
    """Splits text into thinking and answer.

    Thinking comes first or not at all: a mark inside the answer is text. White space around thinking belongs to neither.

    Args:
        marks: that open and close it.
        inside: whether the prompt has opened it already.
    """

    def __init__(self, marks: tuple[str, str], *, inside: bool) -> None:
        self._open, self._close = marks
        self._state = "inside" if inside else "before"
        self._held = ""
        self._fresh = True  # nothing of this part has been given yet: white space is skipped

    @property
    def answering(self) -> bool:
        """Whether thinking is over."""
        return self._state == "answer"

    @property
    def inside(self) -> bool:
        """Whether the text just read was thinking."""
        return self._state == "inside"

    def answer(self) -> None:
        """No thinking comes: the answer has begun elsewhere."""
        self._state, self._fresh = "answer", False

    def push(self, text: str, *, ended: bool = False) -> tuple[str, str]:
        """What is certain now: (thinking, answer)."""
        self._held += text
        thought = ""
        if self._state == "before":
            self._begin(ended)
        if self._state == "inside":
            thought = self._think(ended)
        return thought, self._rest() if self._state == "answer" else ""

    def _begin(self, ended: bool) -> None:
        seen = self._held.lstrip()
        if seen.startswith(self._open):
            self._state, self._held = "inside", seen[len(self._open) :]
        elif ended or not self._open.startswith(seen):
            self._state, self._fresh = "answer", False

    def _think(self, ended: bool) -> str:
        place = self._held.find(self._close)
        if place >= 0:
            thought, self._held = self._held[:place].rstrip(), self._held[place + len(self._close) :]
            self._state = "answer"
        else:
            keep = len(self._held) - (0 if ended else begun(self._held, self._close))
            keep = keep if ended else len(self._held[:keep].rstrip())
            thought, self._held = self._held[:keep], self._held[keep:]
        if self._fresh:
            thought = thought.lstrip()
        self._fresh = self._state == "answer" or (self._fresh and not thought)
        return thought

    def _rest(self) -> str:
        text, self._held = self._held, ""
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        return text
