"""A config.json read with suspicion: every key typed and bounded, every complaint naming its key.

This module knows Hugging Face's key names and nothing of programs or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from freehold.errors import FormatError

_MISSING = object()


class Config:
    """Typed access to config.json (or one of its tables); `path` names the table in messages."""

    def __init__(self, values: Mapping[str, Any], path: str = "config.json") -> None:
        self._values = values
        self._path = path

    def integer(self, key: str, *, default: int | None = None, low: int = 1, high: int) -> int:
        """A whole number in low..high; null counts as absent."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise FormatError(f"{self._path}: {key} must be a whole number from {low} to {high}, found {value!r:.80}")
        return value

    def number(self, key: str, *, default: float | None = None, low: float = 0.0, high: float = 1e12) -> float:
        """A finite number above low and at most high; null counts as absent."""
        value = self._get(key, default)
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or not low < value <= high:
            raise FormatError(
                f"{self._path}: {key} must be a number above {low:g}, at most {high:g}, found {value!r:.80}"
            )
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false; null counts as absent."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise FormatError(f"{self._path}: {key} must be true or false, found {value!r:.80}")
        return value

    def text(self, key: str, *, default: str) -> str:
        """A string; null counts as absent."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise FormatError(f"{self._path}: {key} must be a string, found {value!r:.80}")
        return value

    def table(self, key: str) -> Config | None:
        """A nested object, or None when absent, null or empty."""
        value = self._values.get(key)
        if not value:
            return None
        if not isinstance(value, Mapping):
            raise FormatError(f"{self._path}: {key} must be an object, found {value!r:.80}")
        return Config(value, f"{self._path}: {key}")

    def has(self, key: str) -> bool:
        """True when the key is there and not null."""
        return self._values.get(key) is not None

    def raw(self, key: str) -> Any:
        """The value as it is, or None."""
        return self._values.get(key)

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(key)
        if value is None:
            value = _MISSING if default is None else default
        if value is _MISSING:
            raise FormatError(f"{self._path}: {key} is missing")
        return value
