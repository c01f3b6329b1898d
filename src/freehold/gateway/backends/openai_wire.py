"""OpenAI's wire format, and Azure's variant, seen from the other side: neutral requests to bodies.

A client's own Chat or Completions body passes through as it came: only the model, the stream and what the router took
away are changed. Knows no HTTP. Format: https://platform.openai.com/docs/api-reference/chat/create; Azure's addresses:
https://learn.microsoft.com/azure/ai-services/openai/reference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from freehold.gateway.backends.openai_events import ChunkReader
from freehold.gateway.backends.providers import Provider
from freehold.gateway.backends.splice import JsonObject
from freehold.gateway.conversation import FilePart, ImagePart, Part, Request, TextPart, Turn
from freehold.gateway.failures import CapabilityError

MAX_STOPS = 4  # OpenAI's documented limit; Anthropic's clients may send more
EXTENSIONS = ("top_k", "min_p", "repetition_penalty")
_SAMPLING = ("temperature", "top_p", *EXTENSIONS, "presence_penalty", "frequency_penalty", "seed")
_LIMITS = ("max_tokens", "max_completion_tokens")
_DEPLOYMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class OpenAIWire:
    """Asks as OpenAI's API wants it.

    Args:
        name: the upstream's, for errors.
        provider: its habits.
    """

    def __init__(self, name: str, provider: Provider) -> None:
        self._name = name
        self._provider = provider

    def check(self, request: Request) -> None:
        """What the model can do, the provider says. Going on behind an answer's beginning is no part of the format."""
        if request.continue_from:
            raise CapabilityError(f"The upstream '{self._name}' can't go on behind the beginning of an answer.")
        for part in (part for turn in request.turns for part in turn.parts if isinstance(part, FilePart)):
            if part.url.startswith(("https://", "http://")):
                raise CapabilityError("Chat takes a file's bytes or its id, not its URL.", param="file_url")
            if part.file_id is not None and not request.dialect.startswith("openai_"):
                raise CapabilityError("A file by its id means nothing to another provider.", param="file_id")

    def path(self, request: Request) -> str:
        """Chat or completions."""
        return "/completions" if request.prompts else "/chat/completions"

    def embeddings_path(self, model: str) -> str:
        """Where embeddings are made."""
        return "/embeddings"

    def headers(self, key: str) -> dict[str, str]:
        """A bearer token."""
        return {"authorization": f"Bearer {key}"} if key else {}

    def body(self, request: Request) -> bytes:
        """The client's own body where it can be used, else one with what the neutral request says."""
        own = self._own(request)
        return encode(request, self._provider) if own is None else own

    def reader(self, request: Request) -> ChunkReader:
        """For chunks of either endpoint."""
        return ChunkReader(request, self._name)

    def dropped(self, request: Request) -> tuple[str, ...]:
        """See `Wire.dropped`."""
        if self._own(request) is not None:
            return _refused_extensions(request, self._provider)
        return (*request.dropped, *carried(request, self._provider))

    def _own(self, request: Request) -> bytes | None:
        speaks = "completions" if request.prompts else "chat"
        return relayed(request, self._provider) if request.dialect == f"openai_{speaks}" else None


class AzureWire(OpenAIWire):
    """The same, where the deployment is part of the address.

    Args:
        version: the `api-version` of every request.
    """

    def __init__(self, name: str, provider: Provider, version: str) -> None:
        super().__init__(name, provider)
        self._version = version

    def check(self, request: Request) -> None:
        """The model's name becomes part of the URL."""
        super().check(request)
        self._below(request.model, "")

    def path(self, request: Request) -> str:
        """Below the resource's address."""
        return self._below(request.model, super().path(request))

    def embeddings_path(self, model: str) -> str:
        """Below the resource's address."""
        return self._below(model, super().embeddings_path(model))

    def _below(self, model: str, path: str) -> str:
        if not _DEPLOYMENT.fullmatch(model):
            raise CapabilityError(f"'{model[:100]}' is no name of a deployment.", param="model")
        return f"/openai/deployments/{model}{path}?api-version={self._version}"

    def headers(self, key: str) -> dict[str, str]:
        """Azure's header."""
        return {"api-key": key} if key else {}


def carried(request: Request, provider: Provider) -> tuple[str, ...]:
    """Names what the neutral request asks for and `encode` leaves out; the rest is carried."""
    thought = any(turn.reasoning for turn in request.turns) and not provider.thinking
    sealed = any(r.signature or r.redacted for turn in request.turns for r in turn.reasoning)
    lost = {
        "thinking": thought or sealed,
        "thinking.budget_tokens": request.reasoning_budget is not None,
        "document.context": any(isinstance(p, FilePart) and p.context for turn in request.turns for p in turn.parts),
        "is_error": any(turn.failed for turn in request.turns),
        f"stop[{MAX_STOPS}:]": len(request.stop) > MAX_STOPS,
    }
    return (*_refused_extensions(request, provider), *(name for name, is_lost in lost.items() if is_lost))


def _refused_extensions(request: Request, provider: Provider) -> tuple[str, ...]:
    if provider.extensions:
        return ()
    return tuple(name for name in EXTENSIONS if getattr(request.sampling, name) is not None)


def relayed(request: Request, provider: Provider) -> bytes | None:
    """The client's own body with our model in it; None where it no longer says what is asked.

    Parameters that the neutral request has lost since (the router takes away what is not portable) are lost here too, and
    the limit goes by the provider's name for it.
    """
    strict = not (provider.extensions or provider.thinking)  # such providers refuse messages with thinking in them
    if not request.body or request.continue_from or (strict and any(turn.reasoning for turn in request.turns)):
        return None
    try:
        own = JsonObject(request.body)
        options = own.get("stream_options")
        changes: dict[str, bytes | None] = {"model": msgspec.json.encode(request.model), "stream": b"true"}
        if not isinstance(options, dict) or options.get("include_usage") is not True:
            merged = (options if isinstance(options, dict) else {}) | {"include_usage": True}
            changes["stream_options"] = msgspec.json.encode(merged)
        changes |= _taken_away(own, request, provider) | _limit(own, request, provider)
        if request.n != (own.get("n") or 1):
            changes["n"] = msgspec.json.encode(request.n)
        return own.spliced({name: new for name, new in changes.items() if _differs(own, name, new)})
    except ValueError:
        return None


def _differs(own: JsonObject, name: str, new: bytes | None) -> bool:
    return (name in own.values) if new is None else (name not in own.values or bytes(own.values[name]) != new)


def _taken_away(own: JsonObject, request: Request, provider: Provider) -> dict[str, bytes | None]:
    refused = _refused_extensions(request, provider)
    gone = [name for name in _SAMPLING if name in refused or getattr(request.sampling, name) is None]
    gone += [] if request.sampling.logit_bias else ["logit_bias"]
    return {name: None for name in gone if own.get(name) is not None}


def _limit(own: JsonObject, request: Request, provider: Provider) -> dict[str, bytes | None]:
    name = provider.limit_field if not request.prompts else "max_tokens"
    if request.max_tokens is None or (request.prompts and "max_tokens" not in own.values):
        return {other: None for other in _LIMITS if own.get(other) is not None}
    if own.get(name) == request.max_tokens:
        return {other: None for other in _LIMITS if other != name}
    return {name: msgspec.json.encode(request.max_tokens)} | {other: None for other in _LIMITS if other != name}


def encode(request: Request, provider: Provider) -> bytes:
    """A body with only what the client asked for; `carried` names what it leaves out."""
    body: dict[str, Any] = {"model": request.model, "stream": True, "stream_options": {"include_usage": True}}
    for name in _SAMPLING:
        value = getattr(request.sampling, name)
        if value is not None and (provider.extensions or name not in EXTENSIONS):
            body[name] = value
    if request.sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in request.sampling.logit_bias.items()}
    if request.stop:
        body["stop"] = list(request.stop[:MAX_STOPS])
    if request.n != 1:
        body["n"] = request.n
    if request.user is not None:
        body["user"] = request.user
    return msgspec.json.encode(body | (_completion(request) if request.prompts else _chat(request, provider)))


def _completion(request: Request) -> dict[str, Any]:
    body: dict[str, Any] = {"prompt": request.prompts[0] if len(request.prompts) == 1 else request.prompts}
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if request.logprobs is not None:
        body["logprobs"] = request.logprobs
    if request.echo:
        body["echo"] = True
    return body


def _chat(request: Request, provider: Provider) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": _messages(request.turns, provider)}
    if request.max_tokens is not None:
        body[provider.limit_field] = request.max_tokens
    if request.logprobs is not None:
        body["logprobs"], body["top_logprobs"] = True, request.logprobs
    if request.tools:
        functions = [
            {"name": t.name, "description": t.description, "parameters": t.parameters, "strict": t.strict}
            for t in request.tools
        ]
        body["tools"] = [{"type": "function", "function": _present(f)} for f in functions]
    for name in ("tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort"):
        value = getattr(request, name)
        if value is not None:
            body[name] = value
    return body


def _messages(turns: tuple[Turn, ...], provider: Provider) -> list[dict[str, Any]]:
    """Messages; images that a tool returned follow its answers in a user's message, for a tool's may hold text only."""
    messages: list[dict[str, Any]] = []
    images: list[Part] = []  # and documents
    for turn in turns:
        if turn.role != "tool" and images:
            messages.append({"role": "user", "content": [_part(image) for image in images]})
            images = []
        messages.append(_message(turn, provider))
        if turn.role == "tool":
            images += [part for part in turn.parts if not isinstance(part, TextPart)]
    if images:
        messages.append({"role": "user", "content": [_part(image) for image in images]})
    return messages


def _message(turn: Turn, provider: Provider) -> dict[str, Any]:
    plain = turn.role == "tool" or all(isinstance(part, TextPart) for part in turn.parts)
    message: dict[str, Any] = {"role": turn.role}
    message["content"] = turn.text if plain else [_part(part) for part in turn.parts]
    if turn.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in turn.tool_calls
        ]
    if provider.thinking and (thoughts := "".join(r.text for r in turn.reasoning)):
        message["reasoning_content"] = thoughts
    return message | _present({"name": turn.name, "tool_call_id": turn.tool_call_id})


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return {"type": "image_url", "image_url": _present({"url": part.url, "detail": part.detail})}
    if isinstance(part, FilePart):
        return {"type": "file", "file": _file(part)}
    return {"type": "text", "text": part.text}


def _file(part: FilePart) -> dict[str, str]:
    """By its id, or its bytes, which must have a name."""
    if part.file_id is not None:
        return {"file_id": part.file_id}
    return {"filename": part.name or "document.pdf", "file_data": part.url}


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
