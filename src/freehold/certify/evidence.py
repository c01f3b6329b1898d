"""The transcript as checks see it, and the two registries: scenarios that ask, checks that judge.

A scenario is a coroutine that makes requests; the same coroutine makes them again when a certificate is verified, with the
transcript in place of the network. A check is a pure function over the evidence that yields trials.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from freehold.certify.declaration import Declaration
from freehold.certify.draw import Draw
from freehold.certify.transcript import Answer, Call, Exchange, Untestable
from freehold.certify.verdict import Trial

Send = Callable[[str, Call], Awaitable[Answer]]
VERSION = ("anthropic-version", "2023-06-01")


@dataclass(frozen=True)
class Ask:
    """What a scenario asks with.

    Args:
        scenario: whose requests these are.
        model: the model's name.
        send: takes key and call; the network, or a transcript.
        reference: what another server answered to the same, where there is one.
    """

    scenario: str
    seed: str
    model: str
    declared: Declaration
    send: Send = field(repr=False)
    reference: Evidence | None = field(default=None, repr=False)

    @property
    def draw(self) -> Draw:
        """This scenario's draws."""
        return Draw(self.seed, self.scenario)

    async def __call__(self, name: str, call: Call) -> Exchange:
        """Send a call and keep it under `scenario/name`."""
        key = f"{self.scenario}/{name}"
        return Exchange(key, call, await self.send(key, call))

    async def chat(self, name: str, content: Any = None, **fields: Any) -> Exchange:
        """POST /chat/completions; `content` is the one user message unless `messages` are given."""
        if content is not None:
            fields["messages"] = [{"role": "user", "content": content}]
        return await self(name, post("/chat/completions", _body(self.model, 0, fields)))

    async def responses(self, name: str, given: Any, **fields: Any) -> Exchange:
        """POST /responses."""
        return await self(name, post("/responses", _body(self.model, 0, {"input": given} | fields)))

    async def messages(self, name: str, content: Any = None, **fields: Any) -> Exchange:
        """POST /messages; `content` is the one user message unless `messages` are given."""
        if content is not None:
            fields["messages"] = [{"role": "user", "content": content}]
        call = post("/messages", _body(self.model, 0, {"max_tokens": 64} | fields), VERSION)
        return await self(name, call)


def _body(model: str, temperature: float, fields: Mapping[str, Any]) -> dict[str, Any]:
    body = {"model": model, "temperature": temperature, **fields}
    return {key: value for key, value in body.items() if value is not ...}


def post(path: str, body: Any, *headers: tuple[str, str], **rest: Any) -> Call:
    """A POST of JSON (or of bytes as they are)."""
    data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    return Call("POST", path, data, tuple(headers), **rest)


@dataclass(frozen=True)
class Scenario:
    """A part of the conversation with a server.

    Args:
        dialect: the one it speaks; "" = whichever is declared.
        level: the level that needs it.
        capability: the optional thing it needs; "" = none.
        alone: nothing else may run beside it.
    """

    name: str
    run: Callable[[Ask], Awaitable[None]]
    dialect: str
    level: int
    capability: str
    alone: bool


@dataclass(frozen=True)
class Evidence:
    """All exchanges of a run.

    Args:
        reference: the evidence to compare with, for L4.
        touched: what checks have looked at, the latest last.
    """

    seed: str
    model: str
    declared: Declaration
    exchanges: Mapping[str, Exchange]
    reference: Evidence | None = None
    touched: list[Exchange] = field(default_factory=list, compare=False, repr=False)

    def __getitem__(self, key: str) -> Exchange:
        """One exchange.

        Raises:
            Untestable: it was not made.
        """
        if key not in self.exchanges:
            raise Untestable(key, "this exchange was not made")
        self.touched.append(self.exchanges[key])
        return self.exchanges[key]

    def of(self, *scenarios: str) -> list[Exchange]:
        """The exchanges of these scenarios, in their order.

        Raises:
            Untestable: there are none.
        """
        found = [x for name in scenarios for key, x in self.exchanges.items() if key.partition("/")[0] == name]
        if not found:
            raise Untestable(scenarios[0], "no exchange of this scenario was made")
        self.touched.extend(found)
        return found

    def draw(self, scenario: str) -> Draw:
        """A scenario's draws."""
        return Draw(self.seed, scenario)


Check = Callable[[Evidence], Iterator[Trial]]


@dataclass(frozen=True)
class Registered:
    """A check with the chance that makes its trials good by itself."""

    check: Check
    chance: float | None


SCENARIOS: dict[str, Scenario] = {}
CHECKS: dict[str, Registered] = {}


def scenario(
    name: str, *, dialect: str = "", level: int = 1, capability: str = "", alone: bool = False
) -> Callable[[Callable[[Ask], Awaitable[None]]], Callable[[Ask], Awaitable[None]]]:
    """Registers a scenario."""

    def register(run: Callable[[Ask], Awaitable[None]]) -> Callable[[Ask], Awaitable[None]]:
        assert name not in SCENARIOS, name  # noqa: S101  (a programming error)
        SCENARIOS[name] = Scenario(name, run, dialect, level, capability, alone)
        return run

    return register


def check(id: str, *, chance: float | None = None) -> Callable[[Check], Check]:
    """Registers the check of a requirement."""

    def register(function: Check) -> Check:
        assert id not in CHECKS, id  # noqa: S101  (a programming error)
        CHECKS[id] = Registered(function, chance)
        return function

    return register


def shown(value: Any) -> str:
    """A value on one line, short."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= 160 else text[:157] + "..."


def expect(good: object, x: Exchange, path: str, expected: str, observed: Any) -> Trial:
    """A trial on one exchange."""
    return Trial(bool(good), x.key, path, "" if good else expected, "" if good else shown(observed))
