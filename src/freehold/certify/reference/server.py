"""The reference server: routes, keys, limits, and the three dialects over one scripted model.

incoming -> route -> read (dialect) -> answer (model) -> whole or stream (dialect) -> faults -> outgoing
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from freehold.certify.reference import chat, messages, responses
from freehold.certify.reference import model as lm
from freehold.certify.reference.faulty import Fault
from freehold.certify.reference.http import Incoming, Outgoing, event_bytes, serving
from freehold.certify.reference.refusals import Refusal, envelope

KEY, LIMITED_KEY, LIMIT = "sk-reference", "sk-reference-limited", 3
MAX_BODY = 64 << 10
SLOTS = 6
CREATED = 1_750_000_000
MODELS = (lm.MODEL, lm.THINKER, lm.BROKEN)
ROUTES = {
    "/v1/models": "GET", "/v1/chat/completions": "POST", "/v1/responses": "POST", "/v1/messages": "POST",
    "/v1/messages/count_tokens": "POST",
}  # fmt: skip


class ReferenceServer:
    """One server; `async with server.running() as url`.

    Args:
        fault: what is wrong with it; None = nothing.
    """

    def __init__(self, fault: Fault | None = None) -> None:
        self.fault = fault
        self.leaked = 0
        self.limited = 0
        self.stored: dict[str, list[lm.Turn]] = {}
        self._ids = (f"{number:024x}" for number in itertools.count(1))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Serve on loopback; gives the URL."""
        async with serving(self._handle, self._gone) as port:
            yield f"http://127.0.0.1:{port}"

    def _gone(self) -> None:
        """A client left: its slot is free again, unless the fault keeps it."""
        if self.fault is not None and self.fault.leaks:
            self.leaked += 1

    async def _handle(self, incoming: Incoming) -> Outgoing:
        dialect = _dialect(incoming)
        try:
            reply = self._route(incoming, dialect)
        except Refusal as refusal:
            reply = refusal.reply(dialect)
        reply.headers["request-id" if dialect == "messages" else "x-request-id"] = "req_" + next(self._ids)
        if self.fault is not None:
            self.fault.on_reply(incoming, reply)
        if reply.events is not None and not reply.portions:
            reply.portions = [event_bytes(*event) for event in reply.events]
        if self.fault is not None:
            self.fault.on_portions(incoming, reply)
        return reply

    def _route(self, incoming: Incoming, dialect: str) -> Outgoing:
        self._admit(incoming)
        name = incoming.path.removeprefix("/v1/models/")
        if name != incoming.path:
            if name not in MODELS:
                raise Refusal(
                    "unknown model", f"The model '{name}' does not exist.", status=404, code="model_not_found"
                )
            return Outgoing(body=_model(name))
        if incoming.path not in ROUTES:
            raise Refusal("path", f"Unknown path {incoming.path}.", status=404)
        if incoming.method != ROUTES[incoming.path]:
            raise Refusal("method", f"Not allowed: {incoming.method}.", status=405)
        if incoming.path == "/v1/models":
            return Outgoing(body={"object": "list", "data": [_model(name) for name in MODELS]})
        return self._answer(incoming, dialect)

    def _admit(self, incoming: Incoming) -> None:
        """Keys, the limit of the limited one, the body's size, slots."""
        key = incoming.headers.get("x-api-key") or incoming.headers.get("authorization", "").removeprefix("Bearer ")
        if key not in (KEY, LIMITED_KEY):
            raise Refusal("key", "Incorrect API key provided.", status=401, code="invalid_api_key")
        if key == LIMITED_KEY:
            self.limited += 1
            if self.limited > LIMIT:
                raise Refusal("limit", "Rate limit reached.", status=429, code="rate_limit_exceeded")
        if len(incoming.raw) > MAX_BODY:
            raise Refusal("size", "The body is too large.", status=413)
        if self.leaked >= SLOTS:
            raise Refusal("slots", "No slot is free.", status=500)

    def _answer(self, incoming: Incoming, dialect: str) -> Outgoing:
        try:
            body = incoming.body = json.loads(incoming.raw)
        except ValueError:
            raise Refusal("malformed", "The body is not valid JSON.") from None
        if not isinstance(body, dict):
            raise Refusal("malformed", "The body is no JSON object.")
        if self.fault is not None:
            self.fault.on_body(incoming)
        prompt = self._read(incoming, dialect, body)
        if prompt.model not in MODELS:
            text = f"The model '{prompt.model}' does not exist."
            raise Refusal("unknown model", text, status=404, param="model", code="model_not_found")
        if prompt.tokens() >= lm.CONTEXT:
            text = f"This model's maximum context length is {lm.CONTEXT} tokens."
            raise Refusal("context", text, param=responses.CONTEXT_PARAM[dialect], code="context_length_exceeded")
        if self.fault is not None:
            self.fault.on_prompt(incoming, prompt)
        if incoming.path.endswith("/count_tokens"):
            return Outgoing(body={"input_tokens": prompt.tokens()})
        reply = lm.answer(prompt)
        if self.fault is not None:
            self.fault.on_answer(incoming, prompt, reply)
        return self._written(incoming, dialect, body, prompt, reply)

    def _read(self, incoming: Incoming, dialect: str, body: dict[str, Any]) -> lm.Prompt:
        if dialect == "messages":
            counting = incoming.path.endswith("/count_tokens")
            return messages.read(body, incoming.headers.get("anthropic-version"), counting=counting)
        return responses.read(body, self.stored) if dialect == "responses" else chat.read(body)

    def _written(
        self, incoming: Incoming, dialect: str, body: dict[str, Any], prompt: lm.Prompt, reply: lm.Reply
    ) -> Outgoing:
        writer = {"chat": chat, "responses": responses, "messages": messages}[dialect]
        if dialect == "responses":
            made = responses.made(body, reply, self._ids, CREATED)
            if body.get("store") is not False:
                self.stored[made["id"]] = [*prompt.turns, *responses.turns_of(made)]
            events: Iterator[tuple[str, Any]] = responses.events(made)
            result = made
        else:
            result = writer.whole(body, reply, self._ids, CREATED) if not body.get("stream") else {}
            events = writer.stream(body, reply, self._ids, CREATED)
        limits = _limits(self.limited) if incoming.headers.get("authorization") == f"Bearer {LIMITED_KEY}" else {}
        if not body.get("stream"):
            return Outgoing(body=result, headers=limits)
        sent = list(events)
        if prompt.model == lm.BROKEN:
            sent = _broken(dialect, sent)
        return Outgoing(events=sent, headers=limits)


def _dialect(incoming: Incoming) -> str:
    for path, dialect in (("/v1/messages", "messages"), ("/v1/responses", "responses")):
        if incoming.path.startswith(path):
            return dialect
    return "messages" if "anthropic-version" in incoming.headers else "chat"


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "reference"}


def _limits(used: int) -> dict[str, str]:
    return {
        "x-ratelimit-limit-requests": str(LIMIT),
        "x-ratelimit-remaining-requests": str(max(0, LIMIT - used)),
        "x-ratelimit-reset-requests": "20s",
    }


def _broken(dialect: str, events: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The beginning of a stream, and the error that breaks it as the dialect frames it."""
    begun = events[: len(events) // 2]
    if dialect == "responses":
        return [*begun, responses.failed(begun)]
    error = envelope(dialect, 500, "The model has failed.")
    return [*begun, ("error" if dialect == "messages" else "", error)]
