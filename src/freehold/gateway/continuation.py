"""What a client has been given of one answer, and how another backend goes on behind its last character.

    events of the first backend --Delivered--> client; it breaks; Delivered.remainder(i) -> request for another backend
    events of that one --Splice--> Delivered --> client

A tool call is kept back until its choice is complete whenever somebody could take over: clients act on complete calls
only, and half a call can't be completed by another model. So an incomplete call starts anew, from the same text. Thinking
that was shown stays, and the one who takes over does not show its own. Log probabilities are those of the model that wrote
the token. Knows no backend and no time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from freehold.gateway.conversation import (
    Event,
    Finished,
    ReasoningDelta,
    Request,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from freehold.gateway.stops import StopMatcher

Count = Callable[[str], int]


@dataclass(slots=True)
class _Choice:
    """One choice as the client has it."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    lost: int = 0  # tokens of those pieces whose backend broke before it could report them
    unreported: list[str] = field(default_factory=list)  # pieces since the last report
    held: list[Event] = field(default_factory=list)
    called: bool = False  # the client has a piece of a tool call
    finished: bool = False


class Delivered:
    """What one client has been given, choice by choice.

    Args:
        request: as the client sent it.
        holds_calls: whether tool calls wait until their choice is complete.
    """

    def __init__(self, request: Request, *, holds_calls: bool) -> None:
        self._request = request
        self._holds_calls = holds_calls
        self._choices = [_Choice() for _ in range(request.choices)]
        self._started: Started | None = None
        self._usage: Usage | None = None
        self._spent: list[Usage] = []
        self.broken = False

    @property
    def open(self) -> list[int]:
        """Choices that have not finished."""
        return [i for i, choice in enumerate(self._choices) if not choice.finished]

    def take(self, event: Event) -> list[Event]:
        """What the client may be given now that `event` is here."""
        match event:
            case Started():
                first = self._started is None
                self._started = self._started or event
                return [event] if first else []
            case Usage():
                self._usage = event
                return [] if self.broken else [event]
            case TextDelta() | ReasoningDelta() | ToolCallDelta() | Finished():
                return self._content(self._choices[event.index], event)
        return [event]

    def _content(self, choice: _Choice, event: TextDelta | ReasoningDelta | ToolCallDelta | Finished) -> list[Event]:
        if isinstance(event, Finished):
            choice.finished = True
            given, choice.held = [*choice.held, event], []
        elif choice.held or (isinstance(event, ToolCallDelta) and self._holds_calls):
            choice.held.append(event)
            return []
        else:
            given = [event]
        for shown in given:
            _note(choice, shown)
        return given

    def breaks(self, count: Count | None) -> None:
        """Notes that a backend broke: what it said goes unreported, what was kept back will be said anew.

        Args:
            count: tokens of a text; without it a piece counts as one, which is how most backends send them.
        """
        self.broken = True
        for choice in self._choices:
            choice.lost += count("".join(choice.unreported)) if count else len(choice.unreported)
            choice.unreported, choice.held = [], []

    def blank(self, index: int) -> bool:
        """Whether the client has nothing yet that another backend would have to go on from."""
        choice = self._choices[index]
        return not choice.called and not any(choice.text)

    def remainder(self, index: int, asked: Request) -> Request | None:
        """The rest of a choice as a request of its own; None when it can't be continued at all.

        Args:
            asked: the request as the backend that takes over would get it whole.
        """
        choice = self._choices[index]
        text = "".join(choice.text)
        prompts = asked.prompts[index // asked.n : index // asked.n + 1]
        if asked.echo:
            prompt = prompts[0] if prompts else None
            if not isinstance(prompt, str) or not text.startswith(prompt):
                return None
            text = text.removeprefix(prompt)
        if choice.called:
            return None
        limit = None if asked.max_tokens is None else max(0, asked.max_tokens - choice.lost)
        sampling = asked.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + index)  # as backends number the choices of one seed
        return replace(
            asked, id=f"{asked.id}-{index}" if index else asked.id, prompts=prompts, sampling=sampling, n=1, echo=False,
            max_tokens=limit, continue_from=asked.continue_from + text, stream=True, body=b"",
        )  # fmt: skip

    def splice(self, index: int) -> Splice:
        """The way of a continuation's events back into the choice."""
        choice = self._choices[index]
        return Splice(index, "".join(choice.text), self._request.stop, bool(choice.reasoning))

    def reported(self, index: int, usage: Usage | None, again: int) -> None:
        """Notes what a continuation cost.

        Args:
            again: tokens of its prompt that were the answer's beginning: they are no part of the client's prompt.
        """
        if usage is not None:
            self._choices[index].unreported = []
            self._spent.append(replace(usage, prompt_tokens=max(0, usage.prompt_tokens - again)))

    def end(self) -> list[Event]:
        """One usage for everything that was said, by whomever; none when nobody knows how long the prompt was."""
        self.breaks(None)
        if self._usage is not None:
            return [self._usage]
        prompt = self._started.prompt_tokens if self._started else 0
        prompt = prompt or max((usage.prompt_tokens for usage in self._spent), default=0)
        if not prompt:
            return []
        completion = sum(choice.lost for choice in self._choices) + sum(u.completion_tokens for u in self._spent)
        return [
            Usage(
                prompt,
                completion,
                cached_tokens=min(prompt, max((u.cached_tokens for u in self._spent), default=0)),
                reasoning_tokens=sum(u.reasoning_tokens for u in self._spent),
            )
        ]


def _note(choice: _Choice, event: Event) -> None:
    match event:
        case TextDelta():
            choice.text.append(event.text)
            choice.unreported += [event.text] if event.text else []
        case ReasoningDelta():
            choice.reasoning.append(event.text)
            choice.unreported += [event.text] if event.text else []
        case ToolCallDelta():
            choice.called = True


class Splice:
    """Makes a continuation look like the rest of the choice it continues.

    A stop string may have begun before the break, so matching begins at the answer's first character.

    Args:
        index: of the choice.
        text: that the client has already.
        thought: whether the client has seen thinking.
    """

    def __init__(self, index: int, text: str, stops: tuple[str, ...], thought: bool) -> None:
        self._index = index
        self._stops = StopMatcher(stops)
        self._sent = len(text) - len(self._stops.push(text))  # characters that will come out again
        self._quiet = thought or bool(text)
        self.usage: Usage | None = None
        self._over = self._stops.hit is not None

    def over(self) -> bool:
        """Whether the choice is complete."""
        return self._over

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the choice: its backend may go on, and must not."""
        return self._stops.hit is not None

    @property
    def stop(self) -> Finished:
        """The end of a choice whose stop string is complete."""
        return Finished("stop", self._index, self._stops.hit)

    def take(self, event: Event) -> list[Event]:
        """The event as it belongs into the choice; after a stop string, the end of it."""
        match event:
            case TextDelta():
                text = self._new(self._stops.push(event.text))
                given: list[Event] = []
                if text or (event.logprobs and self._stops.hit is None):
                    given.append(replace(event, text=text, index=self._index))
                if self._stops.hit is not None:
                    self._over = True
                    given.append(self.stop)
                return given
            case Finished():
                self._over = True
                rest = self._new(self._stops.flush())
                tail: list[Event] = [TextDelta(rest, index=self._index)] if rest else []
                return [*tail, replace(event, index=self._index)]
            case ToolCallDelta():
                return [replace(event, index=self._index)]
            case ReasoningDelta():
                return [] if self._quiet else [replace(event, index=self._index)]
            case Usage():
                self.usage = event
        return []

    def _new(self, text: str) -> str:
        """Without the characters that the client had before the break and that matching had kept back."""
        skipped = min(self._sent, len(text))
        self._sent -= skipped
        return text[skipped:]
