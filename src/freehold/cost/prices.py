"""What tokens cost where and when: genai-prices' snapshot, pinned in pyproject.toml, behind the user's own prices.

The only module that imports genai-prices; its network updates are never used, so a price changes only when the package
or the user's file does. Knows providers and models by name; no request, no key and no database.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, time
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.errors import SettingError

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

NANOS = 1_000_000_000
RATE_SCALE = 10**18
PER = 10**15
"""Rates are integers too, of 10^-18 USD for a million tokens: the snapshot has prices with 17 decimals. PER of them make
a nano-dollar a token."""

Rate = tuple[tuple[int, int], ...]
"""(prompt tokens above which it holds, rate), rising; the first holds from 0. Above a step *all* tokens pay its rate, as
providers with long-context prices charge (https://ai.google.dev/gemini-api/docs/pricing)."""

KINDS = ("input", "output", "cached", "cache_write", "reasoning")
_WHOLES = {"cached": "input", "cache_write": "input", "reasoning": "output"}
_NAMES = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cached": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "reasoning": "output_reasoning_mtok",
}


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of an exchange: `cached` and `cache_write` are part of `prompt`, `reasoning` of `completion`."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0

    def sane(self) -> Tokens:
        """Without the negative numbers and parts larger than the whole that a broken provider may report."""
        prompt, completion = max(0, self.prompt), max(0, self.completion)
        cached = min(max(0, self.cached), prompt)
        written = min(max(0, self.cache_write), prompt - cached)
        return Tokens(prompt, completion, cached, written, min(max(0, self.reasoning), completion))


@dataclass(frozen=True, slots=True)
class Price:
    """What a model's tokens cost at one moment. A kind without a rate of its own costs what the whole it is part of does."""

    source: str
    provider: str
    model: str
    rates: Mapping[str, Rate]
    request: int = 0  # nano-dollars for each request

    @property
    def snapshot(self) -> str:
        """An id that names these very rates: the source and a digest of them."""
        digest = hashlib.sha256(self.json().encode()).hexdigest()[:16]
        return f"{self.source}:{self.provider}/{self.model}:{digest}"

    def json(self) -> str:
        """Everything it takes to compute the cost again."""
        return json.dumps(
            {"source": self.source, "provider": self.provider, "model": self.model, "rates": dict(self.rates),
             "request": self.request},
            sort_keys=True,
        )  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> Price:
        """What `json` wrote."""
        found = json.loads(text)
        rates = {kind: tuple((start, rate) for start, rate in steps) for kind, steps in found.pop("rates").items()}
        return cls(rates=rates, **found)

    def cost(self, tokens: Tokens) -> int:
        """Nano-dollars, rounded half up once."""
        t = tokens.sane()
        counted = {
            "input": t.prompt - t.cached - t.cache_write,
            "cached": t.cached,
            "cache_write": t.cache_write,
            "output": t.completion - t.reasoning,
            "reasoning": t.reasoning,
        }
        total = sum(self._rate(kind, t.prompt) * count for kind, count in counted.items())
        return (total + PER // 2) // PER + self.request

    def dearest(self, prompt: int, completion: int) -> int:
        """The most that such an exchange can cost: every token at the dearest rate it could get."""
        into = max(self._rate(kind, prompt) for kind in ("input", "cached", "cache_write"))
        out = max(self._rate(kind, prompt) for kind in ("output", "reasoning"))
        return (into * prompt + out * completion + PER - 1) // PER + self.request

    def _rate(self, kind: str, prompt: int) -> int:
        steps = self.rates.get(kind) or self.rates.get(_WHOLES.get(kind, ""), ((0, 0),))
        return next((rate for start, rate in reversed(steps) if prompt > start or start == 0), 0)


@dataclass(frozen=True, slots=True)
class _Own:
    """One `[[price]]` of the user's file."""

    provider: str
    model: str
    price: Price
    hours: tuple[time, time] | None

    def holds(self, names: tuple[str, ...], model: str, at: datetime) -> bool:
        if self.provider not in names or not fnmatch.fnmatchcase(model, self.model):
            return False
        if self.hours is None:
            return True
        begin, end = self.hours
        now = at.astimezone(UTC).time()
        return begin <= now < end if begin < end else now >= begin or now < end


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Prices by provider, model and moment.

    Args:
        own: the user's, which go first.
    """

    own: tuple[_Own, ...] = ()
    _models: dict[tuple[str, str, str], ModelInfo | None] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, file: str | Path = "") -> PriceBook:
        """With the prices of a TOML file; without any when it is empty.

        Raises:
            SettingError: the file is missing or has a price that is none.
        """
        return cls(_read(Path(file).expanduser())) if file else cls()

    def find(self, provider: str, model: str, at: datetime, *, url: str = "", name: str = "") -> Price | None:
        """The price at that moment (an aware datetime), None when nobody knows it.

        Args:
            provider: as genai-prices calls it; empty = the one whose API `url` is.
            name: the upstream's own name, by which the user's file may call it too.
        """
        names = tuple(filter(None, (name, provider)))
        for entry in self.own:
            if entry.holds(names, model, at):
                return entry.price
        found = self._model(provider, model, url)
        return None if found is None else _price(provider or name, found, at)

    def _model(self, provider: str, model: str, url: str) -> ModelInfo | None:
        key = (provider, model, url)
        if key not in self._models:
            if len(self._models) >= 1000:  # names come from clients
                self._models.clear()
            self._models[key] = _look_up(*key)
        return self._models[key]


@functools.cache
def source() -> str:
    """The pinned snapshot's id."""
    import genai_prices

    return f"genai-prices-{genai_prices.__version__}"


def _look_up(provider: str, model: str, url: str) -> ModelInfo | None:
    """By provider, else by address; never by the model's name alone, which says nothing about who sends the bill."""
    from genai_prices.data_snapshot import get_snapshot

    wanted: tuple[str | None, str | None]
    for wanted in ((provider, None), (None, url)):
        if any(wanted):
            try:
                return get_snapshot().find_provider_model(model, None, *wanted)[1]
            except LookupError:
                continue
    return None


def _price(provider: str, model: ModelInfo, at: datetime) -> Price | None:
    if isinstance(model.prices, list) and not model.prices:
        return None
    found: ModelPrice = model.get_prices(at)
    rates = {kind: rate for kind, name in _NAMES.items() if (rate := _rate(getattr(found, name))) is not None}
    if "input" not in rates:  # priced by the hour, the page or the character: not by what we count
        return None
    thousand = getattr(found, "requests_kcount", None)
    request = 0 if not isinstance(thousand, Decimal) else _nanos(thousand / 1000)
    return Price(source(), provider or "?", model.id, rates, request)


def _rate(value: Any) -> Rate | None:
    if value is None:
        return None
    if isinstance(value, Decimal):
        return ((0, _scaled(value)),)
    return ((0, _scaled(value.base)), *((tier.start, _scaled(tier.price)) for tier in value.tiers))


def _nanos(usd: Decimal) -> int:
    return int((usd * NANOS).to_integral_value())


def _scaled(usd: Decimal) -> int:
    return int((usd * RATE_SCALE).to_integral_value())


def _read(file: Path) -> tuple[_Own, ...]:
    try:
        raw = file.read_bytes()
        table = tomllib.loads(raw.decode(), parse_float=Decimal)
    except FileNotFoundError:
        raise SettingError(f"cost.prices: no file at {file}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, InvalidOperation) as error:
        raise SettingError(f"cost.prices: can't read {file}: {error}") from None
    entries = table.pop("price", [])
    if table or not isinstance(entries, list):
        raise SettingError(f"cost.prices: expected only [[price]] tables in {file}")
    digest = hashlib.sha256(raw).hexdigest()[:12]
    return tuple(_own(entry, f"[[price]] number {i + 1} in {file}", f"own-{digest}") for i, entry in enumerate(entries))


def _own(entry: Any, where: str, origin: str) -> _Own:
    if not isinstance(entry, dict):
        raise SettingError(f"{where}: expected a table")
    entry = dict(entry)
    names = [entry.pop("provider", None), entry.pop("model", "*")]
    if not all(isinstance(name, str) and name for name in names):
        raise SettingError(f"{where}: expected provider and model to be names")
    hours = _hours(entry.pop("hours", None), where)
    request = _nanos(_usd(entry.pop("request", 0), where, "request"))
    tiers = entry.pop("tiers", [])
    rates = {kind: ((0, _scaled(_usd(entry.pop(kind), where, kind))),) for kind in KINDS if kind in entry}
    if entry:
        known = ", ".join(["provider", "model", *KINDS, "request", "hours", "tiers"])
        raise SettingError(f"{where}: unknown setting {next(iter(entry))}", hint=f"known: {known}")
    if "input" not in rates or "output" not in rates:
        raise SettingError(f"{where}: expected input and output, in USD for a million tokens")
    price = Price(origin, names[0], names[1], _tiered(rates, tiers, where), request)
    return _Own(names[0], names[1], price, hours)


def _tiered(rates: Mapping[str, Rate], tiers: Any, where: str) -> dict[str, Rate]:
    """The rates with the steps of `tiers = [{ above = 200000, input = 2.5, output = 15 }]`."""
    found = dict(rates)
    if not isinstance(tiers, list) or not all(isinstance(t, dict) and type(t.get("above")) is int for t in tiers):
        raise SettingError(f"{where}: expected tiers to be tables with `above`, a number of prompt tokens")
    for tier in sorted(tiers, key=lambda tier: tier["above"]):
        for kind, usd in tier.items():
            if kind == "above" and usd > 0:
                continue
            if kind not in found:
                raise SettingError(f"{where}: expected a tier to have `above` > 0 and prices that the table has too")
            found[kind] = (*found[kind], (tier["above"], _scaled(_usd(usd, where, kind))))
    return found


def _usd(value: Any, where: str, name: str) -> Decimal:
    good = isinstance(value, (int, Decimal)) and not isinstance(value, bool)
    if not good or not Decimal(value).is_finite() or value < 0:
        raise SettingError(f"{where}: expected {name} to be USD, at least 0, found {str(value)[:50]}")
    return Decimal(value)


def _hours(value: Any, where: str) -> tuple[time, time] | None:
    if value is None:
        return None
    parse: Callable[[str], time] = time.fromisoformat
    try:
        begin, end = (parse(part.strip()) for part in value.split("-"))
    except (ValueError, AttributeError):
        raise SettingError(f'{where}: expected hours like "16:30-00:30" (UTC), found {str(value)[:50]}') from None
    return begin, end
