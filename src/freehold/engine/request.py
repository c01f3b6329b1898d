"""What goes into the engine and what comes out: plain frozen dataclasses that travel between processes.

This module knows no text, HTTP, files or kernels: token ids only. Every bad value is one clear UsageError.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from freehold.errors import ContextLengthError, UsageError

MAX_LOGPROBS = 100
"""Most alternatives reported per token."""

MAX_BIASES = 4096
"""Most entries of a logit_bias."""

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: dividing by them would only overflow."""

FINISH_REASONS = ("stop", "length", "cancelled", "error")
POOLINGS = ("mean", "last")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and when to stop.

    Args:
        temperature: 0 (or next to it) is greedy (the largest logit; the smallest id among equals).
        top_k: keep the k most likely tokens; 0 = all.
        top_p: keep the smallest set of most likely tokens whose mass reaches top_p; in (0, 1].
        min_p: drop tokens less likely than min_p times the most likely one; in [0, 1].
        repetition_penalty: logits of tokens in prompt or output are divided (if positive) or multiplied by it; in
            [0.01, 100]: smaller ones would make numbers that float32 has no room for.
        presence_penalty: subtracted once from logits of tokens in the output; in [-2, 2].
        frequency_penalty: subtracted for each time a token is in the output; in [-2, 2].
        logit_bias: token id -> added to its logit; in [-100, 100].
        seed: makes a request repeat exactly, whatever runs beside it; None draws from the system.
        max_tokens: most tokens of output; None = up to the context.
        stop_ids: ids that end the output (reported, with finish "stop").
        logprobs: None = off; k = the chosen token's log probability and the k likeliest alternatives, both of the
            model's own distribution (before penalties, bias, temperature and truncation).

    Raises:
        UsageError: a value is out of range; names the field.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0, 100)
        _within("top_k", self.top_k, 0, 2**31 - 1)
        _within("top_p", self.top_p, 0, 1, open_below=True)
        _within("min_p", self.min_p, 0, 1)
        _within("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _within("presence_penalty", self.presence_penalty, -2, 2)
        _within("frequency_penalty", self.frequency_penalty, -2, 2)
        if len(self.logit_bias) > MAX_BIASES:
            raise UsageError(f"logit_bias must have at most {MAX_BIASES} entries, got {len(self.logit_bias)}")
        for token, bias in self.logit_bias.items():
            _within(f"logit_bias[{token}]", bias, -100, 100)
        if self.seed is not None:
            _within("seed", self.seed, -(2**63), 2**64 - 1)
        if self.max_tokens is not None:
            _within("max_tokens", self.max_tokens, 1, 2**31 - 1)
        if self.logprobs is not None:
            _within("logprobs", self.logprobs, 0, MAX_LOGPROBS)

    @property
    def greedy(self) -> bool:
        """True when the largest logit is taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def penalized(self) -> bool:
        """True when what was seen so far changes the logits."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt, as token ids, to be continued, or to be embedded.

    Args:
        grammar: what the output must follow, as `grammar.Grammars` takes it.
        replayed: so many ids at the end of the prompt are earlier output: to penalties, seed and grammar they count as
            such, so that the output goes on as if it had never been cut.
        begin: text the output begins with, in whatever tokens: the end of a prompt whose last token was cut off, as text
            need not end where a token does. A `grammar` given beside it must allow for it.
        pooling: one of POOLINGS: no token is generated, the pooled hidden states come back as `TokenOutput.embedding`.

    Raises:
        UsageError: an empty id or prompt, more replayed than there is, an unknown pooling.
    """

    id: str
    prompt: list[int]
    sampling: Sampling = field(default_factory=Sampling)
    grammar: str | None = None
    replayed: int = 0
    begin: str = ""
    pooling: str | None = None

    def __post_init__(self) -> None:
        if not self.id:
            raise UsageError("a request needs an id")
        if not self.prompt:
            raise UsageError(f"prompt of request {self.id} must have at least one token, got none")
        if not 0 <= self.replayed < len(self.prompt):
            raise UsageError(f"replayed must be at least 0 and less than the prompt's length, got {self.replayed}")
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise UsageError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")


def limit_of(request: GenerateRequest, context: int) -> int:
    """Most tokens that prompt and output may have together.

    Raises:
        ContextLengthError: the prompt, or prompt and max_tokens together, exceed the context.
    """
    prompt, asked = len(request.prompt), request.sampling.max_tokens
    if request.pooling is not None:
        asked = 0
    requested = prompt + (1 if asked is None else asked)
    if requested <= context:
        return requested if asked else context
    wanted = f"{prompt} of the prompt and {asked} of output" if asked else f"{prompt} of the prompt and at least 1 more"
    raise ContextLengthError(
        f"the context is {context} tokens, but {requested} were requested: {wanted}",
        limit=context,
        requested=requested,
        hint="shorten the prompt or lower max_tokens",
    )


@dataclass(
    slots=True
)  # not frozen: one is made for each token, and setting fields one by one past the lock takes longer
class TokenOutput:
    """One token of one request, or its end.

    Args:
        token: None when the request ends without a token ("cancelled", "error").
        logprob, top: the token's own log probability and the likeliest (id, log probability), when asked for.
        finish: None while it goes on, else one of FINISH_REASONS. A stop id arrives with its token.
        prompt_tokens: length of the prompt.
        cached_tokens: how many of them were not computed again.
        error: why, when finish is "error".
        refused: the request was at fault, not the engine.
        embedding: the pooled hidden states, of length 1, when they were asked for.
    """

    id: str
    token: int | None
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)
    finish: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None
    refused: bool = False
    embedding: list[float] | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is running, and why so.

    Args:
        context: longest sequence served, in tokens: the least of model, setting and KV room.
        parameters: weights of the model; tied embeddings once.
        bits_per_weight: stored bits of all tensors over parameters.
        weight_bytes: bytes of all tensors as stored.
        isa, isa_reason, threads, threads_reason: the automatic choices, with their reasons.
        notes: what was done differently from the file, and why.
    """

    architecture: str
    context: int
    vocabulary: int
    parameters: int
    bits_per_weight: float
    weight_bytes: int
    precision: str
    isa: str
    isa_reason: str
    threads: int
    threads_reason: str
    kv_dtype: str
    kv_pages: int
    load_seconds: float
    pid: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's state now; counters run since the engine process started, restarts since its supervisor did."""

    running: int = 0
    waiting: int = 0
    kv_pages_used: int = 0
    kv_pages_total: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    steps_alone: int = 0
    restarts: int = 0


def _within(name: str, value: float, low: float, high: float, *, open_below: bool = False) -> None:
    if math.isfinite(value) and low <= value <= high and not (open_below and value == low):
        return
    above = "above" if open_below else "at least"
    raise UsageError(f"{name} must be {above} {low} and at most {high}, got {value}")
