"""The core backend: the engine process, a tokenizer and a chat template make events out of a request.

The only place where the gateway meets token ids. Knows no HTTP, no dialect and no other backend.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import freehold
from freehold.engine.request import EngineStats, GenerateRequest, ModelFacts, Sampling, TokenOutput
from freehold.errors import EngineDownError, EngineError, TemplateError
from freehold.formats.template import ChatTemplate
from freehold.formats.tokenizer import Tokenizer, load_tokenizer
from freehold.gateway.backends.merge import merge
from freehold.gateway.backends.transcript import Transcript
from freehold.gateway.conversation import (
    Event,
    Finished,
    FinishReason,
    ImagePart,
    Prompt,
    Request,
    Started,
    TextDelta,
    TokenLogprob,
    Turn,
    Usage,
)
from freehold.gateway.failures import CapabilityError

SMALLEST_TOP_P = 1e-9  # OpenAI allows top_p = 0, the engine does not: this keeps just the likeliest token
LEAST_LOGPROB = -9999.0  # how OpenAI writes minus infinity, which JSON can't
TURN = 64  # what rendering a turn costs beside its text, in characters
THREAD_FROM = 16_384  # characters of prompt from which tokenizing would be felt by other requests on the event loop


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


class LocalBackend:
    """The engine on this machine, as a backend.

    Args:
        engine: a started or unstarted engine process; `start` and `close` own its life.
        template: or why there is none that works: then it can only continue text.
        model: the public name.
    """

    name = "local"

    def __init__(
        self, engine: EngineFace, tokenizer: Tokenizer, template: ChatTemplate | TemplateError, model: str
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.template = template
        self.model = model

    @property
    def state(self) -> str:
        """The engine's state."""
        return self.engine.state

    async def start(self) -> None:
        """Loads the model; returns when it can answer."""
        await self.engine.start()

    async def close(self) -> None:
        """Stops the engine process."""
        await self.engine.stop()

    def check(self, request: Request) -> None:
        """Refuses what a plain text engine can't do."""
        if request.wants_tools:
            raise _incapable("tools", "tools")
        if request.response_format is not None and request.response_format.get("type") != "text":
            raise _incapable("response_format", "structured output")
        for i, turn in enumerate(request.turns):
            for j, part in enumerate(turn.parts):
                if isinstance(part, ImagePart):
                    raise _incapable(f"messages[{i}].content[{j}]", "images")
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
        prompts = await self._encode(request)
        tally = _Tally(prompt=sum(len(ids) for _, ids in prompts))
        choices = [
            self._choice(request, p * request.n + i, text, ids, tally)
            for p, (text, ids) in enumerate(prompts)
            for i in range(request.n)
        ]
        yield Started(self.model, self._fingerprint(), prompt_tokens=tally.prompt)
        stream = choices[0] if len(choices) == 1 else merge(choices)
        async with aclosing(stream):
            async for event in stream:
                yield event
        yield Usage(tally.prompt, tally.completion, tally.cached)

    async def count(self, request: Request) -> int:
        """Tokens of the prompt, as the answer's usage will say."""
        self.check(request)
        return sum(len(ids) for _, ids in await self._encode(request))

    async def _encode(self, request: Request) -> list[tuple[str, list[int]]]:
        """Each prompt as the text to echo and its ids."""
        size = sum(len(turn.text) + TURN for turn in request.turns) + sum(map(len, request.prompts))
        if size < THREAD_FROM:
            return self._encode_now(request)
        return await asyncio.to_thread(self._encode_now, request)

    def _encode_now(self, request: Request) -> list[tuple[str, list[int]]]:
        if request.turns:
            assert not isinstance(self.template, TemplateError)  # noqa: S101  (check() has refused)
            text = self.template.render([_message(turn) for turn in request.turns], add_generation_prompt=True)
            return [("", self.tokenizer.encode(text))]
        return [self._encode_prompt(prompt, request.echo) for prompt in request.prompts]

    def _encode_prompt(self, prompt: Prompt, echo: bool) -> tuple[str, list[int]]:
        if not isinstance(prompt, str):
            return (self.tokenizer.decode(prompt) if echo else ""), list(prompt)
        ids = self.tokenizer.encode(prompt, bos=True)
        if not ids:
            start = self.tokenizer.bos if self.tokenizer.bos is not None else min(self.tokenizer.eos, default=None)
            if start is None:
                raise CapabilityError("Invalid 'prompt': the model can't start from an empty text.", param="prompt")
            ids = [start]
        return (prompt if echo else ""), ids

    async def _choice(
        self, request: Request, index: int, echo: str, prompt: list[int], tally: _Tally
    ) -> AsyncGenerator[Event, None]:
        if echo:
            yield TextDelta(echo, index=index)
        if request.max_tokens == 0:
            yield Finished("length", index)
            return
        transcript = Transcript(self.tokenizer.stream(continuing=bool(request.prompts)), request.stop)
        call = GenerateRequest(f"{request.id}-{index}", prompt, self._sampling(request, index))
        finish: FinishReason | None = None
        outputs = self.engine.generate(call)
        async with aclosing(outputs):  # closing cancels: at a stop string the engine must not go on
            async for output in outputs:
                delta, finish = self._read(output, transcript, request, index, tally)
                if delta is not None:
                    yield delta
                if finish is not None:
                    break
        if finish is None:
            raise EngineError(f"the engine ended choice {index} without a finish reason")
        yield Finished(finish, index)

    def _read(
        self, output: TokenOutput, transcript: Transcript, request: Request, index: int, tally: _Tally
    ) -> tuple[TextDelta | None, FinishReason | None]:
        """One output as what to show and whether it is the last."""
        if output.finish == "error":
            raise EngineError(f"the engine failed: {output.error}")
        if output.finish == "cancelled":
            raise EngineDownError("the engine gave up the request", hint="try again")
        tally.cached = max(tally.cached, output.cached_tokens)
        text = ""
        logprobs: tuple[TokenLogprob, ...] = ()
        if output.token is not None:
            tally.completion += 1
            if output.finish != "stop":  # a stop id has no text of its own
                logprob = self._logprob(output) if request.logprobs is not None else None
                text, logprobs = transcript.push(output.token, logprob)
        finish: FinishReason | None = None
        if transcript.stopped:
            finish = "stop"
        elif output.finish is not None:
            rest, late = transcript.close()
            text, logprobs = text + rest, logprobs + late
            finish = "stop" if output.finish == "stop" or transcript.stopped else "length"
        delta = TextDelta(text, logprobs, index) if text or logprobs else None
        return delta, finish

    def _logprob(self, output: TokenOutput) -> TokenLogprob:
        assert output.token is not None and output.logprob is not None  # noqa: S101  (asked for)
        spell = self.tokenizer.token_bytes
        top = tuple(TokenLogprob(spell(token), max(logprob, LEAST_LOGPROB)) for token, logprob in output.top)
        return TokenLogprob(spell(output.token), max(output.logprob, LEAST_LOGPROB), top)

    def _sampling(self, request: Request, index: int) -> Sampling:
        """The engine's parameters; what the client left out takes the engine's default."""
        asked = request.sampling
        names = ("temperature", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
        given: dict[str, Any] = {name: value for name in names if (value := getattr(asked, name)) is not None}
        if asked.top_p is not None:
            given["top_p"] = max(asked.top_p, SMALLEST_TOP_P)
        if asked.seed is not None:
            given["seed"] = asked.seed + index  # choices differ from each other, and repeat
        return Sampling(
            **given,
            logit_bias=asked.logit_bias,
            max_tokens=request.max_tokens,
            stop_ids=frozenset(self.tokenizer.eos),
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


def _message(turn: Turn) -> dict[str, Any]:
    """A turn as chat templates expect it."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.name is not None:
        message["name"] = turn.name
    if turn.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in turn.tool_calls
        ]
    if turn.tool_call_id is not None:
        message["tool_call_id"] = turn.tool_call_id
    return message


def _incapable(param: str, what: str) -> CapabilityError:
    return CapabilityError(
        f"The local engine does not support {what}.",
        param=param,
        code="unsupported_parameter",
        hint="leave it out, or configure an upstream that can serve it",
    )
