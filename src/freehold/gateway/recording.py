"""Hands exchanges to the ledger: what was asked before the client gets a word, what was answered before it gets the last.

Follows the events that the client gets, and what the taps have seen of each backend. Knows conversations; no HTTP, no
database and no rule of what may be trained on.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import msgspec

from freehold.cost.meter import Part, microseconds
from freehold.errors import DatabaseError, OverloadedError
from freehold.gateway.conversation import (
    EmbeddingRequest,
    Event,
    Failed,
    FilePart,
    Finished,
    ImagePart,
    Prompt,
    ReasoningDelta,
    Request,
    TextDelta,
    ToolCallDelta,
    Turn,
)
from freehold.gateway.tap import Taps
from freehold.provenance.exchanges import Begun, Call, Ended, Message, Outcome
from freehold.provenance.exchanges import Part as Recorded
from freehold.provenance.ledger import Ledger
from freehold.provenance.records import new_id
from freehold.settings import UpstreamSettings

MOST_WAITING = 20_000
"""Exchanges that may wait for the database before requests are refused: they are in memory, too."""


class Recorder:
    """The ledger at the gateway.

    Args:
        ledger: opened by `start`, closed by `close`.
        taps: what each backend does for a request.
        upstreams: whose providers are named.
        files: what stands for the local engine's weights (`provenance.weights.files_of`).
        now: seconds since 1970.
    """

    def __init__(
        self,
        ledger: Ledger,
        taps: Taps,
        upstreams: Sequence[UpstreamSettings] = (),
        files: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        self.ledger = ledger
        self._taps = taps
        self._providers = {u.name: u.provider or urlsplit(u.base_url).hostname or "" for u in upstreams}
        self._files = files
        self._now = now
        self._started = asyncio.Event()

    async def start(self) -> None:
        """Opens the ledger; the database is open.

        Raises:
            FreeholdError: it can't be opened.
        """
        try:
            await asyncio.to_thread(self.ledger.open)
        finally:
            self._started.set()

    async def close(self) -> None:
        """Writes what is left to write."""
        self._started.set()
        await asyncio.to_thread(self.ledger.close)

    async def ready(self) -> None:
        """Waits until the ledger takes exchanges: nobody is answered off the record.

        Raises:
            DatabaseError: it never will.
            OverloadedError: too many wait for the database already.
        """
        if self.ledger.waiting > MOST_WAITING:
            raise OverloadedError("the database can't keep up with the ledger", hint="try again in a moment")
        if not self.ledger.is_open:
            await self._started.wait()
            if not self.ledger.is_open:
                raise DatabaseError("the ledger is not open", hint="see the server's log")

    def begin(self, request: Request, backend: str, continued: Sequence[str]) -> Recording:
        """A backend has committed to answer, and the client has nothing yet.

        Args:
            continued: backends that take over after a break; grows while the answer is sent.
        """
        messages = tuple(map(_message, request.turns)) + tuple(map(_prompt, request.prompts))
        tools = msgspec.json.encode(request.tools).decode() if request.tools else ""
        kind = "chat" if request.turns else "completion"
        begun = Begun(
            new_id(self._now()), request.id, self._micros(), kind, request.dialect, request.model, request.key_id,
            messages, tools, self._parts(request.id, [backend], began=True),
        )  # fmt: skip
        self.ledger.begin(begun)
        return Recording(self, begun, request.choices, backend, continued)

    def embedding(self, request: EmbeddingRequest, part: Part) -> str:
        """Vectors were made; gives the id of their record."""
        begun = Begun(
            new_id(self._now()), request.id, self._micros(), "embedding", "openai_embeddings", request.model,
            request.key_id, tuple(map(_prompt, request.inputs)), "", (),
        )  # fmt: skip
        self.ledger.begin(begun)
        self.ledger.end(Ended(begun.id, self._micros(), "finished", (), (), (self._part(part, True),)))
        return begun.id

    def end(
        self, begun: Begun, outcome: Outcome, answers: tuple[Message, ...], finish: list[str], served: Sequence[str]
    ) -> None:
        """An answer is complete.

        Args:
            served: the backends whose words the client has.
        """
        parts = self._parts(begun.request_id, served)
        self.ledger.end(Ended(begun.id, self._micros(), outcome, answers, tuple(finish), parts))

    def _parts(self, request_id: str, served: Sequence[str], *, began: bool = False) -> tuple[Recorded, ...]:
        return tuple(
            self._part(part, part.backend in served and (began or part.finished or part.text_bytes > 0))
            for part in self._taps.parts(request_id)
        )

    def _part(self, part: Part, heard: bool) -> Recorded:
        return Recorded(
            part.backend, part.local, "" if part.local else self._providers.get(part.backend, ""), part.model,
            microseconds(part.at), self._files if part.local else "", part.upstream_id, heard, part.finished,
            part.failure,
        )  # fmt: skip

    def _micros(self) -> int:
        return round(self._now() * 1_000_000)


class Recording:
    """One exchange on record: collects what the client gets."""

    def __init__(self, recorder: Recorder, begun: Begun, choices: int, backend: str, continued: Sequence[str]) -> None:
        self.id = begun.id
        self._recorder = recorder
        self._begun = begun
        self._backend = backend
        self._continued = continued
        self._choices = [_Choice() for _ in range(choices)]
        self._finish: dict[int, str] = {}
        self._open = True

    def note(self, event: Event) -> None:
        """An event that the client is about to get."""
        match event:
            case TextDelta():
                self._choices[event.index].text.append(event.text)
            case ReasoningDelta():
                self._choices[event.index].reasoning.append(event.text)
            case ToolCallDelta():
                self._choices[event.index].call(event)
            case Finished():
                self._finish[event.index] = event.reason
                if len(self._finish) == len(self._choices):
                    self._end("finished")
            case Failed():
                self._end("failed")

    def close(self) -> None:
        """The exchange is over; if nothing has ended it yet, the client has left."""
        self._end("left")

    def _end(self, outcome: Outcome) -> None:
        if self._open:
            self._open = False
            answers = tuple(choice.message() for choice in self._choices)
            finish = [reason for _, reason in sorted(self._finish.items())]
            self._recorder.end(self._begun, outcome, answers, finish, [self._backend, *self._continued])


class _Choice:
    """An answer as far as the client has it."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self._calls: dict[int, list[str]] = {}  # id, name, and pieces of arguments

    def call(self, event: ToolCallDelta) -> None:
        """A piece of a tool call."""
        call = self._calls.setdefault(event.call, ["", ""])
        call[0] = event.id or call[0]
        call[1] = event.name or call[1]
        call.append(event.arguments)

    def message(self) -> Message:
        """As a turn."""
        calls = tuple(Call(id, name, "".join(arguments)) for id, name, *arguments in self._calls.values())
        return Message("assistant", "".join(self.text), calls, reasoning="".join(self.reasoning))


def _message(turn: Turn) -> Message:
    calls = tuple(Call(call.id, call.name, call.arguments) for call in turn.tool_calls)
    images = tuple(_digest(part.url) for part in turn.parts if isinstance(part, ImagePart))
    documents = tuple(_digest(part.url or part.file_id or "") for part in turn.parts if isinstance(part, FilePart))
    reasoning = "".join(piece.text for piece in turn.reasoning)
    return Message(turn.role, turn.text, calls, turn.tool_call_id, turn.name, images, reasoning, documents)


def _prompt(prompt: Prompt) -> Message:
    return Message("prompt", prompt if isinstance(prompt, str) else " ".join(map(str, prompt)))


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()
