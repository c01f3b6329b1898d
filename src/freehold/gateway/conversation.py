"""The neutral conversation: one request model and one stream of events, whatever dialect is spoken outside.

Dialects translate between this and the wire; backends take a `Request` and yield `Event`s. This module knows no HTTP,
no JSON, no tokens and no provider.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter"]
Prompt: TypeAlias = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of text in a turn."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image by URL (data URLs included), passed on to backends that can see."""

    url: str
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class FilePart:
    """A document (a PDF, say), passed on to backends that can read it.

    Args:
        url: its address, or its bytes as a data URL.
        name: of the file.
        file_id: in place of a URL, what the provider that has it calls it; means nothing to others.
        context: what the client says about it.
    """

    url: str = ""
    name: str | None = None
    file_id: str | None = None
    context: str | None = None


Part: TypeAlias = TextPart | ImagePart | FilePart


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the assistant made; `arguments` is the JSON text exactly as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Thinking of an earlier turn, given back by the client.

    Args:
        signature: the provider's seal on it, without which that provider refuses the turn.
        redacted: the provider's opaque data, in place of text.
    """

    text: str = ""
    signature: str | None = None
    redacted: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `tool_call_id` says which call a tool's answer belongs to; `failed`, that the tool failed."""

    role: Role
    parts: tuple[Part, ...] = ()
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    failed: bool = False
    reasoning: tuple[Reasoning, ...] = ()

    @property
    def text(self) -> str:
        """The turn's text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to choose tokens; None = the client did not say, so the backend's default holds."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client wants: either `turns` (a chat) or `prompts` (raw completions), never both.

    Choices are numbered prompt by prompt: choice `p * n + i` is the i-th answer to prompt p; a chat is one prompt.

    Args:
        reasoning_effort: "none", "minimal", "low", "medium" or "high"; None = the model's default.
        reasoning_budget: most tokens of thinking, for dialects that count them.
        continue_from: text of the only choice that the client has already; the answer goes on behind its last character.
        dialect: the client's, by name, and `body`, the request as it came: for an upstream that speaks the same.
        key_id: of the virtual key that asks; empty when keys are not used.
        backends: names of those that may answer, because the key may use them and they can be paid; None = all.
        session: which conversation it belongs to, when the client says so in a header.
        dropped: fields of `body` that the neutral form does not carry; whoever relays `body` itself loses nothing.
        truncate: the oldest turns may be left out of a conversation that does not fit the context.

    `tool_choice` and `response_format` have the shape of OpenAI Chat whatever the dialect.
    """

    id: str
    model: str
    turns: tuple[Turn, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None  # None = off, k = the chosen token and k alternatives
    max_tokens: int | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    echo: bool = False
    user: str | None = None
    stream: bool = False
    reasoning_effort: str | None = None
    reasoning_budget: int | None = None
    continue_from: str = ""
    dialect: str = ""
    body: bytes = field(default=b"", repr=False)
    key_id: str = ""
    backends: frozenset[str] | None = None
    session: str = ""
    dropped: tuple[str, ...] = ()
    truncate: bool = False

    @property
    def choices(self) -> int:
        """How many answers the client will get."""
        return self.n * max(1, len(self.prompts))

    @property
    def wants_tools(self) -> bool:
        """Whether the model must be offered tools."""
        return bool(self.tools) and self.tool_choice != "none"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token (or alternative): its exact bytes and natural-log probability."""

    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()

    @property
    def text(self) -> str:
        """The token as text; bytes that are no UTF-8 on their own are shown as U+FFFD."""
        return self.bytes.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Started:
    """A backend took the request.

    Args:
        model: the one that really answers.
        prompt_tokens: when known, else 0.
        upstream_id: the provider's own name for its answer.
    """

    model: str
    fingerprint: str | None = None
    index: int = 0
    prompt_tokens: int = 0
    upstream_id: str | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of a choice; `logprobs` covers the tokens whose text begins in it, when asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the model's visible thinking; `signature` comes with its last delta, from providers that seal it."""

    text: str
    index: int = 0
    signature: str | None = None
    redacted: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of tool call number `call`; id and name come with its first delta."""

    call: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    index: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the whole request, all choices together; sent once, at the end."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    index: int = 0
    cache_write_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """A choice is complete: exactly one per index.

    Args:
        stop_sequence: the client's stop string that ended it.
        mean_logprob: of the answer's tokens (thinking and calls left out), from backends that know it when log
            probabilities were asked for.
    """

    reason: FinishReason
    index: int = 0
    stop_sequence: str | None = None
    mean_logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The stream broke after it had begun; nothing follows."""

    error: Exception
    index: int = 0


Event: TypeAlias = Started | TextDelta | ReasoningDelta | ToolCallDelta | Usage | Finished | Failed
Content: TypeAlias = TextDelta | ReasoningDelta | ToolCallDelta | Finished
"""Events a client can see: the first of them commits an answer to its backend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Texts (or token ids) to embed; backends that can have `async def embed(request) -> Embeddings`."""

    id: str
    model: str
    inputs: tuple[Prompt, ...]
    dimensions: int | None = None
    user: str | None = None
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector for each input, in their order."""

    model: str
    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int
