"""Grammars: which tokens may come next so that the output follows a JSON schema or a context-free grammar.

The only owner of llguidance (https://github.com/guidance-ai/llguidance), whose grammar texts it takes as they are: a
JSON document with `grammars`, or its dialect of Lark. Compilation runs in threads of its own, bounded in number, size
and time, so that a hostile schema can't hold up a step. Knows tokens as ids and bytes; no scheduler, no HTTP, no tools.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import llguidance
import numpy as np
from numpy.typing import NDArray

from freehold.errors import FreeholdError, OverloadedError, UnsupportedError, UsageError

MAX_SOURCE = 256 << 10
"""Longest grammar, in characters."""

MAX_COMPILING = 8
"""Grammars compiled at the same time, those given up included: a thread can't be stopped."""

COMPILE_SECONDS = 5.0
"""After this a grammar is refused. llguidance's own limits end a compilation far earlier in all cases we know."""

KEPT = 64
"""Compiled grammars kept for the next request."""

# Fuel per token, half of llguidance's default: about 7 ms of lexing and 1 ms of parsing at most (its ParserLimits).
_LIMITS = llguidance.LLParserLimits(step_lexer_fuel=100_000, step_max_items=25_000, verbose_errors=False)


class GrammarStuck(Exception):
    """A grammar that can't go on: a limit was hit inside, or no token fits."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What tokens stand for.

    Args:
        tokens: exact bytes of each id; b"" for ids that can't be produced.
        special: ids of control tokens, which no text matches.
        eos: ids that end the output.
        encode: the model's own way to write a text as ids.
    """

    tokens: Sequence[bytes]
    special: frozenset[int]
    eos: tuple[int, ...]
    encode: Callable[[str], list[int]]

    @classmethod
    def of(cls, model: Path, size: int) -> Vocabulary:
        """The vocabulary of a model on disk, as many ids as its logits have columns.

        Raises:
            TokenizerError: there is no usable tokenizer.
        """
        from freehold.formats.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(model)
        known = min(size, tokenizer.vocabulary)
        tokens = [tokenizer.token_bytes(id) for id in range(known)] + [b""] * (size - known)
        eos = tuple(sorted(id for id in tokenizer.eos if id < size))
        return cls(tokens, frozenset(id for id in tokenizer.special if id < size), eos, tokenizer.encode)


class _Tokens:
    """A vocabulary as llguidance wants to see it."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.eos[0]
        self.tokens = vocabulary.tokens
        self.special_token_ids = sorted(vocabulary.special)
        self._encode = vocabulary.encode
        self.greedy: Callable[[str], list[int]] | None = None

    def __call__(self, text: str) -> list[int]:
        """Forced text as the model would write it; longest tokens first where that would not be this very text."""
        ids = self._encode(text)
        exact = b"".join(self.tokens[id] for id in ids if id < len(self.tokens)) == text.encode()
        return ids if exact or self.greedy is None else self.greedy(text)


class Matcher:
    """One output on its way through a grammar."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self) -> NDArray[np.uint8]:
        """Which ids may come next, one bit each, the lowest first.

        Raises:
            GrammarStuck: a limit was hit, or nothing fits.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise GrammarStuck(f"the grammar can't be followed further: {_first_line(self._matcher.get_error())}")
        if not bits.any():
            raise GrammarStuck("the grammar can't be followed further: no token fits")
        return bits

    def take(self, token: int) -> bool:
        """Go on by one token; False when it does not fit (and `allowed` will say so)."""
        return bool(self._matcher.consume_token(token))


class Compilation:
    """A grammar on its way to a matcher."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._done = threading.Event()
        self._found: Matcher | FreeholdError | None = None

    def settle(self, found: Matcher | FreeholdError) -> None:
        """Called once, by whoever compiles."""
        self._found = found
        self._done.set()

    @property
    def done(self) -> bool:
        """Whether `result` will not wait; true also for one that has taken too long."""
        return self._done.is_set() or time.monotonic() - self.began > COMPILE_SECONDS

    def wait(self, seconds: float) -> None:
        """Returns when it is done, or after so many seconds."""
        self._done.wait(seconds)

    def result(self) -> Matcher:
        """The matcher.

        Raises:
            UsageError: the grammar is wrong, asks for what is not supported, or takes too long; says which.
            UnsupportedError: the model has no tokenizer that grammars could use.
        """
        if self._found is None:
            raise UsageError(
                f"the grammar took more than {COMPILE_SECONDS:g} s to compile", hint="use a simpler schema"
            )
        if isinstance(self._found, FreeholdError):
            raise self._found
        return self._found


class Grammars:
    """Compiles grammars for one vocabulary.

    Args:
        vocabulary: called once, in a thread, when the first grammar comes.
    """

    def __init__(self, vocabulary: Callable[[], Vocabulary]) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()  # held for moments only: the engine's own thread takes it too
        self._loading = threading.Lock()
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._kept: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._compiling = 0

    def compile(self, source: str, output: Sequence[int] = ()) -> Compilation:
        """Start to compile.

        Args:
            source: a grammar text of llguidance.
            output: ids that the grammar has to take before the next one is chosen.

        Raises:
            UsageError: the text is too long.
            OverloadedError: too many grammars are being compiled.
        """
        if len(source) > MAX_SOURCE:
            raise UsageError(f"a grammar has at most {MAX_SOURCE:,} characters, this one {len(source):,}")
        with self._lock:
            if self._compiling >= MAX_COMPILING:
                raise OverloadedError(f"{MAX_COMPILING} grammars are being compiled", hint="try again in a moment")
            self._compiling += 1
        compilation = Compilation()
        # a daemon: the process must be able to end while a compilation that was given up still runs
        threading.Thread(target=self._run, args=(compilation, source, output), daemon=True, name="grammar").start()
        return compilation

    def _run(self, compilation: Compilation, source: str, output: Sequence[int]) -> None:
        try:
            found: Matcher | FreeholdError = self._matcher(source, output)
        except FreeholdError as error:
            found = error
        except BaseException as error:  # llguidance's panics are no Exception; nobody must wait for ever
            found = UsageError(f"the grammar could not be compiled: {type(error).__name__}: {error}")
        with self._lock:
            self._compiling -= 1
        compilation.settle(found)

    def _matcher(self, source: str, output: Sequence[int]) -> Matcher:
        matcher = self._compiled(source).deep_copy()
        for place, token in enumerate(output):
            if not matcher.consume_token(token):
                raise UsageError(f"the text to be continued does not follow the grammar (token {place + 1})")
        return Matcher(matcher)

    def _compiled(self, source: str) -> llguidance.LLMatcher:
        """A matcher at the beginning, to be copied."""
        with self._lock:
            if source in self._kept:
                self._kept.move_to_end(source)
                return self._kept[source]
        with self._loading:
            tokenizer = self._tokens()
        matcher = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first is the slowest (tables are built): here it holds up nobody
        if matcher.is_error():
            raise UsageError(f"the grammar is not usable: {_first_line(matcher.get_error())}")
        with self._lock:
            self._kept[source] = matcher
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return matcher

    def _tokens(self) -> llguidance.LLTokenizer:
        if self._tokenizer is None:
            vocabulary = self._vocabulary()
            if not vocabulary.eos:
                raise UnsupportedError(
                    "grammars need a tokenizer that names the end of a text; this model's names none"
                )
            tokens = _Tokens(vocabulary)
            self._tokenizer = llguidance.LLTokenizer(tokens, eos_token=list(vocabulary.eos))  # type: ignore[arg-type]
            tokens.greedy = self._tokenizer.greedy_tokenize
        return self._tokenizer


def beginning(text: str) -> str:
    """The grammar of any text that begins with `text`."""
    return f"start: {json.dumps(text, ensure_ascii=False)} REST\nREST: /(.|\\n)*/\n"


def _first_line(text: str) -> str:
    """llguidance's reason, without the place in the grammar (" 2 | start: ...") and the state that may follow it."""
    lines = itertools.takewhile(lambda line: not re.match(r"\s*\d+ \| ", line), text.splitlines())
    words = " ".join(line.strip() for line in lines if line.strip() and not line.startswith("<"))
    words = re.sub(r"^at \d+\(\d+\): ", "", words)
    return words[:300] or "no reason given"
