"""One choice of the local engine: tokens in, events out. Thinking, tool calls and the answer's text, told apart.

    token -> detokenizer -> Thinking -> CallParser -> Content (stop strings) -> events

Knows neither the engine nor the prompt; what is there already of the answer is handed in.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from freehold.gateway.backends.transcript import Content, Detokenizer
from freehold.gateway.conversation import (
    Finished,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from freehold.gateway.toolformats.parsers import CallParser
from freehold.gateway.toolformats.source import Arguments, Call
from freehold.gateway.toolformats.source import Text as Outside
from freehold.gateway.toolformats.thinking import Thinking

Delta = TextDelta | ReasoningDelta | ToolCallDelta


@dataclass(slots=True)
class Parts:
    """What a choice's text is told apart into; None = not looked for."""

    thinking: Thinking | None = None
    calls: CallParser | None = None
    short_ids: bool = False
    stops: tuple[str, ...] = field(default=())


class Reading:
    """One choice.

    Args:
        already: text of the answer that the client has; the tokens go on behind it.
        begin: text that the first tokens repeat, because it was cut off the prompt.
    """

    def __init__(
        self, detokenizer: Detokenizer, parts: Parts, index: int, *, already: str = "", begin: str = ""
    ) -> None:
        self._detokenizer = detokenizer
        self._thinking = parts.thinking
        self._parser = parts.calls
        self._short_ids = parts.short_ids
        self._content = Content(parts.stops)
        self._index = index
        self._skip = self._content.resume(already.removesuffix(begin)) + len(begin)
        self._sum = 0.0
        self._known = 0
        self.tokens = 0
        self.thought = 0
        self.calls = 0
        if already and self._thinking is not None:
            self._thinking.answer()

    @property
    def stopped(self) -> bool:
        """Whether a stop string completed."""
        return self._content.stopped

    @property
    def thinks(self) -> bool:
        """Whether the model is thinking, not yet answering."""
        return self._thinking is not None and self._thinking.inside

    @property
    def whole(self) -> bool:
        """Whether the tokens so far end where a character does."""
        return self._detokenizer.whole

    def have(self, count: int) -> None:
        """The client has so many characters more of what comes."""
        self._skip += count

    def push(self, token: int, logprob: TokenLogprob | None = None) -> list[Delta]:
        """What `token` made certain."""
        self.tokens += 1
        if logprob is not None and self._outside:
            self._sum, self._known = self._sum + logprob.logprob, self._known + 1
            self._content.note(logprob)
        text = self._detokenizer.push(token)
        found = list(self._split(text)) if text else []
        self.thought += self.thinks
        return found

    def close(self) -> list[Delta]:
        """What was held back, at the end of the tokens."""
        found = list(self._split(self._detokenizer.flush(), ended=True))
        if not self.stopped:
            text, logprobs = self._content.end()
            found += self._shown(text, logprobs)
        return found

    def finished(self, reason: str) -> Finished:
        """The end of the choice, for the engine's reason."""
        if self.stopped:
            kind: FinishReason = "stop"
        else:
            kind = "stop" if reason == "stop" else "length"
        if kind == "stop" and self.calls and not self.stopped:
            kind = "tool_calls"
        mean = self._sum / self._known if self._known else None
        return Finished(kind, self._index, self._content.stop, mean)

    @property
    def _outside(self) -> bool:
        return not self.thinks and (self._parser is None or self._parser.outside)

    def _split(self, text: str, *, ended: bool = False) -> Iterator[Delta]:
        thought = ""
        if self._thinking is not None:
            thought, text = self._thinking.push(text, ended=ended)
        if thought:
            yield ReasoningDelta(thought, self._index)
        if self._parser is None:
            yield from self._answer(text)
            return
        pieces = self._parser.push(text)
        if ended:
            pieces += self._parser.close()
        for piece in pieces:
            if isinstance(piece, Outside):
                yield from self._answer(piece.text)
            elif isinstance(piece, Call):
                self.calls += 1
                yield ToolCallDelta(self.calls - 1, self._call_id(), piece.name, index=self._index)
            elif isinstance(piece, Arguments):
                yield ToolCallDelta(self.calls - 1, arguments=piece.text, index=self._index)
        if not self._outside:
            self._content.forget()

    def _answer(self, text: str) -> list[Delta]:
        return self._shown(*self._content.feed(text)) if text else []

    def _shown(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> list[Delta]:
        skipped = min(self._skip, len(text))
        self._skip -= skipped
        text = text[skipped:]
        if skipped and not text:
            return []
        return [TextDelta(text, logprobs, self._index)] if text or logprobs else []

    def _call_id(self) -> str:
        made = uuid.uuid4().hex
        return made[:9] if self._short_ids else f"call_{made[:24]}"
