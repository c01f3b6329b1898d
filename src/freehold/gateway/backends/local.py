"""The core backend: the engine process, a tokenizer and a chat template make events out of a request.

The only place where the gateway meets the engine: `prompting` makes token ids of a request, `reading` events of what
comes back, `unfinished` remembers what was cut. Knows no HTTP, no dialect and no other backend.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import freehold
from freehold.engine.request import EngineStats, GenerateRequest, ModelFacts, Sampling, TokenOutput
from freehold.errors import EngineDownError, EngineError, TemplateError, UsageError
from freehold.formats.template import ChatTemplate
from freehold.formats.tokenizer import Tokenizer, load_tokenizer
from freehold.gateway.backends import embedding
from freehold.gateway.backends.budget_of_thinking import budget_of, within
from freehold.gateway.backends.merge import merge
from freehold.gateway.backends.prompting import Prepared, Prompter
from freehold.gateway.backends.reading import Parts, Reading
from freehold.gateway.backends.unfinished import Cut, Unfinished
from freehold.gateway.conversation import (
    EmbeddingRequest,
    Embeddings,
    Event,
    FilePart,
    Finished,
    ImagePart,
    Request,
    Started,
    TextDelta,
    TokenLogprob,
    Usage,
)
from freehold.gateway.failures import CapabilityError, RequestError
from freehold.gateway.toolformats.marks import Family
from freehold.gateway.toolformats.parsers import CallParser
from freehold.gateway.toolformats.thinking import Thinking

SMALLEST_TOP_P = 1e-9  # OpenAI allows top_p = 0, the engine does not: this keeps just the likeliest token
LEAST_LOGPROB = -9999.0  # how OpenAI writes minus infinity, which JSON can't
TURN = 64  # what rendering a turn costs beside its text, in characters
THREAD_FROM = 16_384  # characters of prompt from which tokenizing would be felt by other requests on the event loop
FORMATS = ("text", "json_object", "json_schema")


class EngineFace(Protocol):
    """What this backend needs of `engine.EngineProcess`."""

    @property
    def state(self) -> str: ...  # noqa: D102

    @property
    def facts(self) -> ModelFacts | None: ...  # noqa: D102

    @property
    def stats(self) -> EngineStats: ...  # noqa: D102

    async def start(self) -> ModelFacts: ...  # noqa: D102

    def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenOutput, None]: ...  # noqa: D102

    async def stop(self) -> None: ...  # noqa: D102


@dataclass(slots=True)
class _Tally:
    """Tokens of a whole request."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    thought: int = 0


class LocalBackend:
    """The engine on this machine, as a backend.

    Args:
        engine: a started or unstarted engine process; `start` and `close` own its life.
        template: or why there is none that works: then it can only continue text.
        model: the public name.
        pooling: how hidden states become an embedding: "mean" or "last".
        sampling: values that hold where a client says nothing (see `defaults.recommended`).
    """

    name = "local"
    continues = True

    def __init__(
        self,
        engine: EngineFace,
        tokenizer: Tokenizer,
        template: ChatTemplate | TemplateError,
        model: str,
        *,
        pooling: str = "mean",
        sampling: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.engine = engine
        self.sampling = sampling
        self.tokenizer = tokenizer
        self.template = template
        self.model = model
        self.pooling = pooling
        self.prompter = Prompter(tokenizer, template)
        self._unfinished = Unfinished()

    @property
    def state(self) -> str:
        """The engine's state."""
        return self.engine.state

    @property
    def family(self) -> Family:
        """How the model writes tool calls and thinking, with the reason for taking it so."""
        return self.prompter.family

    async def start(self) -> None:
        """Loads the model; returns when it can answer."""
        await self.engine.start()

    async def close(self) -> None:
        """Stops the engine process."""
        await self.engine.stop()

    def check(self, request: Request) -> None:
        """Refuses what a text engine can't do."""
        if request.response_format is not None and request.response_format.get("type") not in FORMATS:
            raise _incapable("response_format", "this kind of response format")
        for i, turn in enumerate(request.turns):
            for j, part in enumerate(turn.parts):
                if isinstance(part, ImagePart):
                    raise _incapable(f"messages[{i}].content[{j}]", "images")
                if isinstance(part, FilePart):
                    raise _incapable(f"messages[{i}].content[{j}]", "documents")
        if request.echo and request.logprobs is not None:
            raise _incapable("logprobs", "log probabilities of an echoed prompt")
        if request.turns and isinstance(self.template, TemplateError):
            raise CapabilityError(
                f"The local model '{self.model}' can't chat: {self.template.message}.",
                param="messages",
                code="unsupported_value",
                hint="use /v1/completions, or a model tuned for chat",
            )
        self._check_ids(request)

    def _check_ids(self, request: Request) -> None:
        vocabulary = self.tokenizer.vocabulary
        given = [("logit_bias", request.sampling.logit_bias.keys())]
        given += [("prompt", prompt) for prompt in request.prompts if not isinstance(prompt, str)]  # type: ignore[misc]
        for param, ids in given:
            largest = max(ids, default=0)
            if largest >= vocabulary:
                raise CapabilityError(
                    f"Invalid token id in '{param}': expected less than {vocabulary}, but got {largest}.",
                    param=param,
                    code="invalid_value",
                )

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """The answer; see `Backend.stream`."""
        self.check(request)
        if self.engine.state != "ready":
            raise EngineDownError(f"the local engine is {self.engine.state}", hint="try again in a few seconds")
        prompts = await self._prepare(request)
        tally = _Tally(prompt=sum(len(prompt.ids) for prompt in prompts))
        choices = [
            self._choice(request, p * request.n + i, prompt, tally)
            for p, prompt in enumerate(prompts)
            for i in range(request.n)
        ]
        yield Started(self.model, self._fingerprint(), prompt_tokens=tally.prompt)
        stream = choices[0] if len(choices) == 1 else merge(choices)
        async with aclosing(stream):
            async for event in stream:
                yield event
        yield Usage(tally.prompt, tally.completion, tally.cached, tally.thought)

    async def count(self, request: Request) -> int:
        """Tokens of the prompt, as the answer's usage will say."""
        self.check(request)
        return sum(len(prompt.ids) for prompt in await self._prepare(request))

    def tokens_of(self, text: str) -> int:
        """How many tokens a text is, about: what was written in other tokens may count a little differently."""
        return len(self.tokenizer.encode(text, special=False)) if text else 0

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """One vector for each input.

        Raises:
            RequestError: an input is empty, too many dimensions.
            ContextLengthError, EngineDownError, OverloadedError: see `EngineProcess.generate`.
        """
        ids = await asyncio.to_thread(embedding.encode, self.tokenizer, request.inputs)
        vectors = await embedding.embed(self.engine.generate, request.id, ids, self.pooling)
        cut = tuple(embedding.shortened(vector, request.dimensions) for vector in vectors)
        return Embeddings(self.model, cut, sum(map(len, ids)))

    async def _prepare(self, request: Request) -> list[Prepared]:
        size = sum(len(turn.text) + TURN for turn in request.turns) + sum(map(len, request.prompts))
        if size + len(request.continue_from) < THREAD_FROM:
            return self.prompter.prepare(request)
        return await asyncio.to_thread(self.prompter.prepare, request)

    async def _choice(
        self, request: Request, index: int, prompt: Prepared, tally: _Tally
    ) -> AsyncGenerator[Event, None]:
        if prompt.echo:
            yield TextDelta(prompt.echo, index=index)
        if request.max_tokens == 0:
            yield Finished("length", index)
            return
        cut = self._begin(request, index, prompt)
        reading = self._reading(request, index, cut)
        for delta in self._unfinished.replay(cut, reading, request.continue_from):
            yield delta
        spent, thought = len(cut.ids), reading.thought
        finish: str | None = None
        outputs = within(
            budget_of(request),
            reading,
            self.prompter.closing,
            lambda: self.engine.generate(self._call(request, index, cut)),
        )
        try:
            async with aclosing(outputs):  # closing cancels: at a stop string the engine must not go on
                async for output in outputs:
                    self._check_output(output)
                    tally.cached = max(tally.cached, output.cached_tokens)
                    if output.token is not None:
                        cut.ids.append(output.token)
                        if output.finish != "stop":  # a stop id has no text of its own
                            for delta in reading.push(output.token, self._logprob(output, request)):
                                yield delta
                    finish = "stop" if reading.stopped else output.finish
                    if finish is not None:
                        break
        except EngineError:
            if not reading.calls:  # a call that was cut starts anew
                self._unfinished.keep(_key(request, index), cut)
            raise
        except UsageError as error:
            raise _named(error, request) if cut.prepared.grammar is not None else error from None
        finally:
            tally.completion += len(cut.ids) - spent
            tally.thought += reading.thought - thought
        if finish is None:
            raise EngineError(f"the engine ended choice {index} without a finish reason")
        for delta in reading.close():
            yield delta
        yield reading.finished(finish)

    def _begin(self, request: Request, index: int, prompt: Prepared) -> Cut:
        """Where the choice begins: where an earlier try was cut, if there was one that fits, else at the prompt."""
        before = self._unfinished.take(_key(request, index), request.continue_from)
        return before or Cut(prompt, request.continue_from, request.max_tokens)

    def _reading(self, request: Request, index: int, cut: Cut) -> Reading:
        family, opening = self.family, cut.prepared.opening
        thinking = calls = None
        if request.turns:
            if family.thinking is not None:
                thinking = Thinking(family.thinking, inside=opening.thinking == "open")
            calls = CallParser(family) if request.wants_tools else None
        parts = Parts(thinking, calls, family.kind == "mistral", request.stop)
        keep = self.prompter.kept if request.turns else frozenset[int]()
        detokenizer = self.tokenizer.stream(continuing=bool(request.prompts or cut.already), keep=keep)
        return Reading(detokenizer, parts, index, already=cut.already, begin=opening.begin)

    def _call(self, request: Request, index: int, cut: Cut) -> GenerateRequest:
        begin = cut.prepared.opening.begin
        limit = cut.limit
        if limit is not None:  # the token that was cut off the prompt is not the client's to pay for
            limit = max(1, limit + bool(begin) - len(cut.ids))
        return GenerateRequest(
            f"{request.id}-{index}",
            cut.prepared.ids + cut.ids,
            self._sampling(request, index, limit),
            grammar=cut.prepared.grammar,
            replayed=cut.prepared.replayed + len(cut.ids),
            begin=begin,
        )

    @staticmethod
    def _check_output(output: TokenOutput) -> None:
        if output.finish == "error":
            raise EngineError(f"the engine failed: {output.error}")
        if output.finish == "cancelled":
            raise EngineDownError("the engine gave up the request", hint="try again")

    def _logprob(self, output: TokenOutput, request: Request) -> TokenLogprob | None:
        if request.logprobs is None or output.logprob is None:  # not asked for, or no choice of the model's
            return None
        assert output.token is not None  # noqa: S101
        spell = self.tokenizer.token_bytes
        top = tuple(TokenLogprob(spell(token), max(logprob, LEAST_LOGPROB)) for token, logprob in output.top)
        return TokenLogprob(spell(output.token), max(output.logprob, LEAST_LOGPROB), top)

    def _sampling(self, request: Request, index: int, limit: int | None) -> Sampling:
        """The engine's parameters; what the client left out takes the model's recommendation, or the engine's default."""
        asked = request.sampling
        names = ("temperature", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
        given: dict[str, Any] = {**self.sampling}
        given |= {name: value for name in names if (value := getattr(asked, name)) is not None}
        if asked.top_p is not None:
            given["top_p"] = max(asked.top_p, SMALLEST_TOP_P)
        if asked.seed is not None:
            given["seed"] = asked.seed + index  # choices differ from each other, and repeat
        return Sampling(
            **given,
            logit_bias=asked.logit_bias,
            max_tokens=limit,
            stop_ids=self.prompter.stop_ids,
            logprobs=request.logprobs,
        )

    def _fingerprint(self) -> str:
        """Changes when the weights, the kernels or the version do, and with them perhaps the sampled text."""
        facts = self.engine.facts
        parts: list[object] = [freehold.__version__, self.model]
        if facts is not None:
            parts += [facts.architecture, facts.weight_bytes, facts.isa, facts.kv_dtype]
        return "fp_" + hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


def load_text_side(path: Path) -> tuple[Tokenizer, ChatTemplate | TemplateError]:
    """The tokenizer of a model on disk, and its chat template or why it has none."""
    tokenizer = load_tokenizer(path)
    try:
        return tokenizer, ChatTemplate.of(path)
    except TemplateError as error:
        return tokenizer, error


def _key(request: Request, index: int) -> str:
    """What a choice is called when somebody asks for the rest of it: as the relay names requests for one choice."""
    return f"{request.id}-{index}" if index else request.id


def _named(error: UsageError, request: Request) -> UsageError:
    """The engine's refusal of a grammar, as a refusal of the field it was made from."""
    if isinstance(error, RequestError):
        return error
    param = "tools" if request.wants_tools and request.turns else "response_format"
    return CapabilityError(
        f"Invalid '{param}': {error.message}.", param=param, code="invalid_value", hint="simplify the schema"
    )


def _incapable(param: str, what: str) -> CapabilityError:
    return CapabilityError(
        f"The local engine does not support {what}.",
        param=param,
        code="unsupported_parameter",
        hint="leave it out, or configure an upstream that can serve it",
    )
