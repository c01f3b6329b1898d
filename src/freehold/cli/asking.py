"""What `run` and `chat` share: the flags of a request, and one streamed answer with its account.

Talks to the gateway in process, without HTTP, so a standby answers here as it would behind the server. It knows no
tokens and no models.
"""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from freehold.cli.output import progress, say
from freehold.errors import FreeholdError
from freehold.settings import Settings

if TYPE_CHECKING:
    from freehold.gateway import Gateway
    from freehold.gateway.conversation import Request, Turn
    from freehold.gateway.exchange import Record

F = TypeVar("F", bound=Callable[..., Any])
Write = Callable[[str], None]

_FLAGS = [
    click.option("--system", metavar="TEXT", help="System message."),
    click.option("--max-tokens", type=click.IntRange(1), help="Longest answer. [default: what the context allows]"),
    click.option(
        "--temperature",
        type=click.FloatRange(0, 2),
        help="0 always takes the likeliest token. [default: the model's, or 1]",
    ),
    click.option("--top-k", type=click.IntRange(0), help="Choose among the k likeliest tokens; 0 = all."),
    click.option(
        "--top-p", type=click.FloatRange(0, 1, min_open=True), help="Choose among the likeliest that hold this share."
    ),
    click.option("--min-p", type=click.FloatRange(0, 1), help="Drop tokens below this share of the likeliest."),
    click.option("--repetition-penalty", type=click.FloatRange(0.01, 100), help="Above 1: repeat less of anything."),
    click.option("--presence-penalty", type=click.FloatRange(-2, 2), help="Above 0: avoid tokens used already."),
    click.option("--frequency-penalty", type=click.FloatRange(-2, 2), help="The same, for each time they were used."),
    click.option("--seed", type=int, help="The same seed gives the same answer."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; repeatable."),
]
_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished answer and its account.

    Args:
        seconds: from asking to the end of the answer, without loading the model.
        tokens_per_second: after the first piece of text; None for an answer of one token.
        bits_per_weight: of the local model; None when a standby answered.
        cost_usd: seconds times the machine's price; None when that price is not set, or a standby answered.
    """

    text: str
    backend: str
    model: str
    reason: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    first_token_seconds: float | None
    tokens_per_second: float | None
    bits_per_weight: float | None
    cost_usd: float | None

    def line(self) -> str:
        """The account on one line."""
        speed = "tok/s n/a" if self.tokens_per_second is None else f"{self.tokens_per_second:.1f} tok/s"
        bits = "bits n/a" if self.bits_per_weight is None else f"{self.bits_per_weight:.2f} bits"
        cost = "cost n/a" if self.cost_usd is None else f"cost ${self.cost_usd:.8f}"
        return f"{self.backend} · {self.completion_tokens} tokens · {speed} · {bits} · {cost}"


def request_flags(function: F) -> F:
    """Give a verb the flags that `make_request` takes."""
    for flag in reversed(_FLAGS):
        function = flag(function)
    return function


def make_request(settings: Settings, turns: tuple[Turn, ...], values: dict[str, Any]) -> Request:
    """The neutral request for these turns, from the values of the flags."""
    from freehold.gateway.conversation import Request, Sampling

    return Request(
        id=f"cli-{uuid.uuid4().hex}",
        model=settings.engine.model if _is_upstream(settings) else "local",
        turns=turns,
        sampling=Sampling(**{name: values[name] for name in _SAMPLING}),
        stop=tuple(values["stop"]),
        max_tokens=values["max_tokens"],
        stream=True,
    )


def turn(role: Any, text: str) -> Turn:
    """One message."""
    from freehold.gateway.conversation import TextPart, Turn

    return Turn(role, (TextPart(text),))


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncGenerator[Gateway, None]:
    """A running gateway. When the local engine can't start but there is a standby, that is said, and no error."""
    logging.getLogger("freehold").addHandler(logging.NullHandler())  # what matters here comes as an error or a reason
    gateway = _build(settings)
    try:
        try:
            await gateway.start()
        except FreeholdError as error:
            if not any(standby.model for standby in gateway.router.standbys):
                raise
            say(f"warning: the local engine did not start ({error.message}); a standby answers")
        yield gateway
    finally:
        await gateway.close()


def _build(settings: Settings) -> Gateway:
    from freehold.gateway import Gateway

    if _is_upstream(settings):
        from freehold.gateway.backends.upstreams import upstream_backend

        return Gateway(
            None, [upstream_backend(upstream, settings.guards) for upstream in settings.upstreams], settings.guards
        )
    with progress() as bar:
        return Gateway.build(settings, progress=bar)


def _is_upstream(settings: Settings) -> bool:
    """Whether the model is a provider's, as `provider.model`: then no local engine is needed."""
    return any(settings.engine.model.startswith(upstream.name + ".") for upstream in settings.upstreams)


async def answer(gateway: Gateway, request: Request, settings: Settings, write: Write) -> Answer:
    """Ask, pass each piece of text to `write`, and give the account at the end.

    Raises:
        FreeholdError: nobody could answer, or the answer broke off; the text so far has been written.
    """
    from freehold.gateway.conversation import Failed, TextDelta

    given = await gateway.answer(request)
    pieces: list[str] = []
    async with aclosing(given.events):
        async for event in given.events:
            if isinstance(event, TextDelta):
                pieces.append(event.text)
                write(event.text)
            elif isinstance(event, Failed):
                raise event.error
    return _account("".join(pieces), given.record, gateway, settings)


def _account(text: str, record: Record, gateway: Gateway, settings: Settings) -> Answer:
    seconds = record.seconds or 0.0
    local = gateway.core is not None and record.backend == gateway.core.name
    facts = gateway.core.engine.facts if gateway.core is not None and local else None
    after_first = seconds - record.ttft if record.ttft is not None else 0.0
    more = record.completion_tokens - 1
    price = settings.cost.machine_usd_per_hour
    return Answer(
        text=text,
        backend=record.backend,
        model=settings.engine.model if local else record.model,
        reason=record.reason,
        finish=record.finished[0] if record.finished else "",
        prompt_tokens=record.prompt_tokens,
        completion_tokens=record.completion_tokens,
        seconds=seconds,
        first_token_seconds=record.ttft,
        tokens_per_second=more / after_first if more > 0 and after_first > 0 else None,
        bits_per_weight=facts.bits_per_weight if facts is not None else None,
        cost_usd=seconds * price / 3600 if local and price else None,
    )


def writer() -> Write:
    """Writes pieces of an answer to stdout at once; on a terminal without the characters that could drive it."""
    guard = sys.stdout.isatty()

    def write(text: str) -> None:
        if guard:
            text = "".join(c for c in text if c.isprintable() or c in "\n\t")
        sys.stdout.write(text)
        sys.stdout.flush()

    return write
