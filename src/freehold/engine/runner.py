"""The engine: schedule, run, sample. Token ids in, token ids out, one step at a time.

It knows no text, HTTP or processes (`process` puts it into one of its own), and leaves arithmetic to the kernels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from freehold.engine.blocks import PageAllocator
from freehold.engine.embedding import HIDDEN, FinalNorm
from freehold.engine.grammar import Compilation, Grammars, Vocabulary, beginning
from freehold.engine.loading import LoadedWeights, Precision, load_weights
from freehold.engine.memory import kv_pages
from freehold.engine.models import program_for
from freehold.engine.packed import packed_weights
from freehold.engine.prefix import PrefixCache
from freehold.engine.request import EngineStats, GenerateRequest, ModelFacts, TokenOutput, limit_of
from freehold.engine.sampler import Sampled, SamplerState, sample
from freehold.engine.scheduler import Chunk, Scheduler, step_of
from freehold.engine.sequence import Sequence
from freehold.errors import FreeholdError, UnsupportedError, UsageError
from freehold.formats.checkpoint import open_checkpoint
from freehold.kernels import make_executor
from freehold.kernels.cpu import choose_threads, choose_tier
from freehold.kernels.executor import PackedMatrix
from freehold.kernels.matrix import Matrix
from freehold.kernels.program import PAGE, Program, Step
from freehold.process_memory import give_back
from freehold.settings import EngineSettings

COMPILING_WAIT = 0.002
"""Seconds a step waits for a grammar when there is nothing else to do."""


class Executor(Protocol):
    """What runs a program: `kernels.executor.Executor` or its NumPy twin."""

    @property
    def steps_alone(self) -> int:
        """Steps that one thread did alone."""

    def run(self, step: Step) -> NDArray[np.float32]:
        """Logits [R, vocabulary] of one step."""

    def buffer(self, name: str, rows: int) -> NDArray[np.float32]:
        """A copy of the first rows of a buffer as the last step left it."""

    def copy_page(self, source: int, target: int) -> None:
        """Copy one KV page, in all layers, onto another."""


class Engine:
    """A loaded model and the requests it is working on. Not thread-safe; call `step` as long as `has_work`.

    Args:
        vocabulary: what the tokens stand for, asked when the first grammar comes; without it grammars are refused.
        norm: the final norm; without it embeddings are refused.
    """

    def __init__(
        self,
        program: Program,
        executor: Executor,
        settings: EngineSettings,
        *,
        pages: int,
        vocabulary: Callable[[], Vocabulary] | None = None,
        norm: FinalNorm | None = None,
    ) -> None:
        self.program = program
        self.executor = executor
        self.context = min(served_context(program, settings), pages * PAGE)
        self._facts: ModelFacts | None = None
        self._grammars = Grammars(vocabulary) if vocabulary is not None else None
        self._compiling: list[tuple[Sequence, Compilation]] = []
        self._norm = norm
        self._pages = PageAllocator(pages)
        self._scheduler = Scheduler(
            self._pages,
            max_batch=settings.max_batch,
            max_step_tokens=settings.max_step_tokens,
            max_queue=settings.max_queue,
            prefix=PrefixCache(self._pages) if settings.prefix_cache else None,
        )
        self._arrivals = self._steps = self._prompt_tokens = self._output_tokens = 0

    @classmethod
    def load(cls, model: Path, settings: EngineSettings, *, precision: Precision = "stored") -> Engine:
        """Read a checkpoint (Hugging Face directory or .gguf file) and make it ready.

        Raises:
            FormatError, UnsupportedError, UsageError: see `models.program_for`, `loading`, `memory`.
        """
        begin = time.perf_counter()
        tier = choose_tier(settings.isa)
        weights: Mapping[str, Matrix | PackedMatrix | NDArray[np.float32]]
        with open_checkpoint(model) as checkpoint:
            program = program_for(checkpoint.config, guard=precision == "stored")
            if precision == "stored" and tier.value != "reference":
                weights, facts = packed_weights(checkpoint, program, keep=settings.packed_weights == "cache")
            else:
                facts = load_weights(checkpoint, program, precision)
                weights, facts = facts.weights, replace(facts, weights={})
        return cls.of(
            program,
            weights,
            facts,
            settings,
            precision=precision,
            vocabulary=lambda: Vocabulary.of(model, program.vocabulary),
            begin=begin,
        )

    @classmethod
    def of(
        cls,
        program: Program,
        weights: Mapping[str, Matrix | PackedMatrix | NDArray[np.float32]],
        loaded: LoadedWeights,
        settings: EngineSettings,
        *,
        precision: Precision = "stored",
        vocabulary: Callable[[], Vocabulary] | None = None,
        begin: float | None = None,
    ) -> Engine:
        """An engine of weights that are read already.

        Args:
            weights: of the whole program; `loaded` are their facts.
            begin: when loading began, by `time.perf_counter`.

        Raises:
            UsageError: see `memory.kv_pages`.
        """
        begin = time.perf_counter() if begin is None else begin
        pages = kv_pages(program, settings, served_context(program, settings))
        tier, (threads, threads_reason) = choose_tier(settings.isa), choose_threads(settings.threads)
        executor = make_executor(
            program, weights, pages=pages, kv_dtype=settings.kv_dtype, threads=threads, tier=tier.value
        )
        norm = FinalNorm.of(program, weights)
        del weights  # the executor has what it needs
        give_back()
        engine = cls(program, executor, settings, pages=pages, vocabulary=vocabulary, norm=norm)
        engine._facts = ModelFacts(
            architecture=program.architecture,
            context=engine.context,
            vocabulary=program.vocabulary,
            parameters=loaded.parameters,
            bits_per_weight=loaded.bits_per_weight,
            weight_bytes=loaded.stored_bytes,
            precision=precision,
            isa=tier.value,
            isa_reason=tier.reason,
            threads=threads,
            threads_reason=threads_reason,
            kv_dtype=settings.kv_dtype,
            kv_pages=pages,
            load_seconds=time.perf_counter() - begin,
            pid=os.getpid(),
            notes=loaded.notes,
        )
        return engine

    def warm(self) -> None:
        """Begin to make grammars ready, aside: their tables take half a second that the first request need not wait."""
        if self._grammars is not None:
            self._grammars.compile(beginning("a"))

    @property
    def facts(self) -> ModelFacts:
        """What is loaded; known of engines that `load` made."""
        if self._facts is None:
            raise ValueError("an engine made from parts has no facts")
        return self._facts

    @property
    def has_work(self) -> bool:
        """True while a request is running or waiting."""
        return bool(self._scheduler.running or self._scheduler.waiting or self._compiling)

    @property
    def stats(self) -> EngineStats:
        """The state now."""
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting) + len(self._compiling),
            kv_pages_used=self._pages.used,
            kv_pages_total=self._pages.total,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            preemptions=self._scheduler.preemptions,
            steps_alone=self.executor.steps_alone,
        )

    def add(self, request: GenerateRequest) -> None:
        """Queue a request. One with a grammar waits until that is compiled; if it is wrong, the next step says so.

        Raises:
            ContextLengthError: the prompt, or prompt and max_tokens together, exceed the context.
            OverloadedError: the queue is full.
            UsageError: a token id outside the vocabulary, or an id that is already in use.
        """
        if self._find(request.id):
            raise UsageError(f"a request with id {request.id!r} is already running")
        self._check_ids(request)
        limit = limit_of(request, self.context)
        if request.pooling is not None and self._norm is None:
            raise UnsupportedError("an engine made from parts has no embeddings")
        sampler = SamplerState(request.sampling, request.prompt, request.replayed)
        sequence = Sequence(request, self._arrivals, limit, sampler)
        grammar = request.grammar or (beginning(request.begin) if request.begin else None)
        if grammar is None:
            self._scheduler.add(sequence)
        else:
            self._compiling.append((sequence, self._compile(request, grammar)))
        self._arrivals += 1
        self._prompt_tokens += len(request.prompt)

    def cancel(self, request_id: str) -> TokenOutput | None:
        """Drop a request and free its pages at once; None when it is unknown or already finished."""
        sequence = self._find(request_id)
        if sequence is None:
            return None
        if self._scheduler.find(request_id):
            self._scheduler.remove(sequence)
        self._compiling = [pending for pending in self._compiling if pending[0] is not sequence]
        return _ending(sequence, "cancelled")

    def pretend(self, request_id: str, tokens: int) -> None:
        """For benches: take so many tokens of a prompt as computed; its pages become copies of its first one.

        The request must have begun, with at least one whole page.
        """
        sequence = self._scheduler.find(request_id)
        if sequence is None or not PAGE <= sequence.computed <= tokens < len(sequence.tokens):
            raise ValueError(f"request {request_id} has not computed a page of more than {tokens} tokens")
        if self._scheduler.shares_pages:
            raise ValueError("pages that other prompts may read must not be written: switch prefix_cache off")
        for page in sequence.pages[1:]:
            self.executor.copy_page(sequence.pages[0], page)
        sequence.computed = tokens

    def step(self) -> list[TokenOutput]:
        """One pass through the model; the tokens it gave."""
        refused = self._admit_compiled()
        chunks = self._scheduler.schedule()
        if not chunks:
            if self._compiling and not refused:
                self._compiling[0][1].wait(COMPILING_WAIT)
            return refused
        sampling = [chunk.sequence for chunk in chunks if chunk.samples]
        try:
            logits = self.executor.run(step_of(chunks))
            sampled = sample(logits, [sequence.sampler for sequence in sampling])
            pooling = [chunk for chunk in chunks if chunk.sequence.pool is not None]
            if pooling:
                self._pool(chunks)
        except Exception as error:
            error.add_note(f"in a step of {len(chunks)} sequences")
            failed = [self._fail(chunk.sequence, error) for chunk in chunks]
            raise StepError(refused + failed) from error
        self._steps += 1
        for chunk in chunks:
            self._scheduler.note_computed(chunk)
        tokens = [self._deliver(sequence, choice) for sequence, choice in zip(sampling, sampled, strict=True)]
        return refused + tokens + self._embeddings(pooling)

    def _find(self, request_id: str) -> Sequence | None:
        pending = next((sequence for sequence, _ in self._compiling if sequence.id == request_id), None)
        return pending or self._scheduler.find(request_id)

    def _compile(self, request: GenerateRequest, grammar: str) -> Compilation:
        if self._grammars is None:
            raise UnsupportedError("an engine made from parts has no grammars")
        return self._grammars.compile(grammar, request.prompt[len(request.prompt) - request.replayed :])

    def _admit_compiled(self) -> list[TokenOutput]:
        """Queue the requests whose grammars are ready; the ends of those that were refused."""
        if not self._compiling:
            return []
        ready = [pending for pending in self._compiling if pending[1].done]
        self._compiling = [pending for pending in self._compiling if pending not in ready]
        refused: list[TokenOutput] = []
        for sequence, compilation in ready:
            try:
                sequence.sampler.constraint = compilation.result()
                self._scheduler.add(sequence)
            except FreeholdError as error:
                refused.append(
                    replace(_ending(sequence, "error", error.message), refused=isinstance(error, UsageError))
                )
        return refused

    def _pool(self, chunks: list[Chunk]) -> None:
        """Hand the rows of this step to the sequences that gather them."""
        if self._norm is None:
            return
        hidden = self.executor.buffer(HIDDEN, sum(chunk.count for chunk in chunks))
        end = 0
        for chunk in chunks:
            begin, end = end, end + chunk.count
            if chunk.sequence.pool is not None:
                chunk.sequence.pool.add(self._norm(hidden[begin:end]), chunk.sequence.computed)

    def _embeddings(self, chunks: list[Chunk]) -> list[TokenOutput]:
        """The vectors of prompts that are through."""
        outputs = []
        for sequence in (chunk.sequence for chunk in chunks):
            if sequence.pool is not None and sequence.pending == 0:
                self._scheduler.remove(sequence)
                outputs.append(replace(_ending(sequence, "stop"), embedding=sequence.pool.vector()))
        return outputs

    def _deliver(self, sequence: Sequence, choice: Sampled) -> TokenOutput:
        if choice.token is None:
            self._scheduler.remove(sequence)
            return _ending(sequence, "error", choice.reason)
        finish = sequence.append(choice.token)
        self._output_tokens += 1
        if finish:
            self._scheduler.remove(sequence)
        return TokenOutput(
            id=sequence.id,
            token=choice.token,
            logprob=choice.logprob,
            top=choice.top,
            finish=finish,
            prompt_tokens=sequence.prompt_tokens,
            cached_tokens=min(sequence.cached, sequence.prompt_tokens),
        )

    def _fail(self, sequence: Sequence, error: Exception) -> TokenOutput:
        self._scheduler.remove(sequence)
        return _ending(sequence, "error", f"the engine failed in this step: {type(error).__name__}: {error}")

    def _check_ids(self, request: GenerateRequest) -> None:
        vocabulary = self.program.vocabulary
        for what, ids in (("prompt", request.prompt), ("logit_bias", request.sampling.logit_bias)):
            for token in ids:
                if not 0 <= token < vocabulary:
                    raise UsageError(f"{what} has token id {token}; the vocabulary is 0 to {vocabulary - 1}")


class StepError(Exception):
    """A step failed as a whole: the requests in it are over (`outputs` tells each), those waiting are not."""

    def __init__(self, outputs: list[TokenOutput]) -> None:
        super().__init__(f"a step of {len(outputs)} sequences failed")
        self.outputs = outputs


def served_context(program: Program, settings: EngineSettings) -> int:
    """Longest sequence that the model and the setting allow."""
    return min(program.context, settings.max_context or program.context)


def _ending(sequence: Sequence, finish: str, error: str | None = None) -> TokenOutput:
    return TokenOutput(
        id=sequence.id,
        token=None,
        finish=finish,
        prompt_tokens=sequence.prompt_tokens,
        cached_tokens=min(sequence.cached, sequence.prompt_tokens),
        error=error,
    )
