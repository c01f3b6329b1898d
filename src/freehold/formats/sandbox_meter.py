"""What rendering a template may use: steps, bytes, seconds. Every limit is checked before memory is taken.

Knows Python values only; `sandbox.py` decides where to ask.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.runtime import Undefined

MAX_STEPS = 500_000
MAX_VALUE = 16 << 20  # bytes of one string, or the like for a list
MAX_TOTAL = 256 << 20  # bytes of everything made while rendering
MAX_SECONDS = 3.0
MAX_BITS = 1 << 12  # of an integer
POINTER = 64  # what an element of a list is charged, in bytes


class LimitError(Exception):
    """A template used more time or memory than a chat template can need."""


class Meter:
    """What one rendering has used so far."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + MAX_SECONDS
        self._steps = 0
        self._total = 0
        self._known: dict[int, tuple[Any, int, bool]] = {}

    def step(self, count: int = 1) -> None:
        """Charge work."""
        self._steps += count
        if self._steps > MAX_STEPS:
            raise LimitError(f"more than {MAX_STEPS:,} steps")
        if time.monotonic() > self._deadline:
            raise LimitError(f"more than {MAX_SECONDS:g} seconds")

    def expect(self, size: int) -> None:
        """Charge memory that is about to be taken for one value."""
        if size > MAX_VALUE:
            raise LimitError(f"a value of more than {MAX_VALUE >> 20} MiB")
        self._total += max(size, 0)
        if self._total > MAX_TOTAL:
            raise LimitError(f"more than {MAX_TOTAL >> 20} MiB in all")

    def measure(self, value: Any) -> int:
        """Bytes a value takes when written out; shared parts count each time they occur."""
        return self._inspect(value)[0]

    def text(self, value: Any) -> str:
        """A value as output shows it: text, numbers, and containers of nothing else."""
        if isinstance(value, str):
            return value
        size, plain = self._inspect(value)
        if not plain:
            raise LimitError(f"a {type(value).__name__} can't be shown as text")
        self.step()
        self.expect(size)
        return str(value)

    def made(self, value: Any) -> Any:
        """Charge a value that was just made, and give it back."""
        self.step()
        self.expect(len(value) if isinstance(value, (str, bytes)) else 0)
        self.measure(value)
        return value

    def join(self, parts: Iterable[str]) -> str:
        """Texts one after the other."""
        pieces = list(parts)
        self.step(1 + len(pieces) // 16)
        self.expect(sum(map(len, pieces)))
        return "".join(pieces)

    def _inspect(self, value: Any) -> tuple[int, bool]:
        """Size, and whether only plain data is inside. Remembered: no template can change a container once made."""
        if isinstance(value, (str, bytes)):
            return len(value), True
        if isinstance(value, int):
            if value.bit_length() > MAX_BITS:
                raise LimitError(f"an integer of more than {MAX_BITS} bits")
            return 32, True
        if not isinstance(value, (list, tuple, dict)):
            return POINTER, isinstance(value, (float, Undefined, type(None)))
        known = self._known.get(id(value))
        if known is None:
            known = self._known[id(value)] = (value, *self._add_up(value))  # holding the value keeps its id taken
        return known[1], known[2]

    def _add_up(self, value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> tuple[int, bool]:
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        self.step(1 + len(parts) // 16)
        size, plain = POINTER, True
        for part in parts:
            inside, inside_plain = self._inspect(part)
            size, plain = size + POINTER + inside, plain and inside_plain
        if size > MAX_VALUE:
            raise LimitError(f"a value of more than {MAX_VALUE >> 20} MiB")
        return size, plain


_meter: ContextVar[Meter] = ContextVar("template_meter")


def current() -> Meter:
    """The meter of the rendering under way."""
    return _meter.get()


@contextmanager
def metered(meter: Meter) -> Iterator[None]:
    """Charge what happens inside to this meter."""
    token = _meter.set(meter)
    try:
        yield
    finally:
        _meter.reset(token)


class Counted:
    """An iterable whose every step is charged; `loop.length` still works where it did."""

    def __init__(self, values: Iterable[Any]) -> None:
        self._values = values

    def __iter__(self) -> Iterator[Any]:
        meter = _meter.get()
        for value in self._values:
            meter.step()
            yield value

    def __len__(self) -> int:
        return len(self._values)  # type: ignore[arg-type]  # a TypeError is what Jinja expects of an iterator


_WIDTH = re.compile(r"\d{4,}|\*|\{[^{}]*\{")


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Charge an operator for its result, or refuse it, before it runs."""
    meter = _meter.get()
    if operator == "%" and isinstance(left, (str, bytes)):
        check_formatting(str(left), "%", right if isinstance(right, tuple) else [right])
    elif operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(value, (str, bytes, list, tuple)) and isinstance(times, int):
                meter.expect(meter.measure(value) * times)
    elif operator == "+" and isinstance(left, (str, bytes, list, tuple)):
        meter.expect(meter.measure(left) + meter.measure(right))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MAX_BITS:
        raise LimitError(f"an integer of more than {MAX_BITS} bits")
    meter.measure(left)
    meter.measure(right)


def check_formatting(pattern: str, mark: str, values: Iterable[Any]) -> None:
    """Charge `%` or `str.format`: no computed or huge widths, and every directive may show every value."""
    if _WIDTH.search(pattern):
        raise LimitError("a field width of more than 999, or a computed one")
    meter = _meter.get()
    shown = sum(len(meter.text(value)) for value in values)
    meter.expect(len(pattern) + pattern.count(mark) * (1000 + shown))


_SAFE_METHODS = frozenset(
    (
        "capitalize",
        "casefold",
        "count",
        "endswith",
        "find",
        "index",
        "isalnum",
        "isalpha",
        "isascii",
        "isdecimal",
        "isdigit",
        "isidentifier",
        "islower",
        "isnumeric",
        "isprintable",
        "isspace",
        "istitle",
        "isupper",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "rfind",
        "rindex",
        "rpartition",
        "rstrip",
        "startswith",
        "strip",
        "swapcase",
        "title",
        "upper",
    )
)


def check_method(owner: str | bytes, name: str, args: tuple[Any, ...]) -> None:
    """Charge a method of a string for its result, or refuse it, before it runs."""
    meter = current()
    if name in _SAFE_METHODS:
        meter.expect(3 * len(owner))  # upper("ß") may grow
    elif name in ("split", "rsplit", "splitlines"):
        separator = args[0] if args and name != "splitlines" else None
        pieces = owner.count(separator) if isinstance(separator, str) and isinstance(owner, str) else len(owner) // 2
        meter.expect(len(owner) + POINTER // 4 * pieces)
    elif name == "replace" and isinstance(owner, str):
        check_replace(owner, *args[:2])
    elif name == "join" and len(args) == 1 and isinstance(args[0], (list, tuple)):
        meter.expect(meter.measure(args[0]) + len(owner) * len(args[0]))
    else:
        raise LimitError(f"string method {name!r} is not offered to templates")


def check_replace(text: str, old: Any = "", new: Any = "") -> None:
    """Charge `text.replace(old, new)`."""
    if isinstance(old, str) and isinstance(new, str):
        _meter.get().expect(len(text) + text.count(old) * len(new))
