"""Everything random in a probe, drawn by HMAC from the run's seed, so that a verifier can draw it again.

Draws are named, not counted: asking for one never changes another.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"
FIELDS = ("city", "color", "size", "level", "shape", "route", "grade", "mode", "unit", "phase", "zone", "kind")


@dataclass(frozen=True, slots=True)
class Draw:
    """The draws of one scenario.

    Args:
        seed: the run's, hexadecimal.
        scope: whose draws these are.
    """

    seed: str
    scope: str

    def number(self, name: str, below: int) -> int:
        """An integer in [0, below); the bias of the modulo is below 2^-190."""
        digest = hmac.new(bytes.fromhex(self.seed), f"{self.scope}/{name}".encode(), "sha256").digest()
        return int.from_bytes(digest) % below

    def word(self, name: str) -> str:
        """A pronounceable word that is in no dictionary: four syllables, about 3e7 possibilities."""
        number, letters = self.number(name, (len(CONSONANTS) * len(VOWELS)) ** 4), ""
        for _ in range(4):
            number, index = divmod(number, len(CONSONANTS) * len(VOWELS))
            letters += CONSONANTS[index // len(VOWELS)] + VOWELS[index % len(VOWELS)]
        return letters

    def choice(self, name: str, options: list[T] | tuple[T, ...]) -> T:
        """One of them."""
        return options[self.number(name, len(options))]

    def shuffled(self, name: str, items: list[T] | tuple[T, ...]) -> list[T]:
        """The items in a drawn order."""
        return [
            item for _, item in sorted(enumerate(items), key=lambda pair: self.number(f"{name}/{pair[0]}", 1 << 64))
        ]

    def schema(self, name: str, *, depth: int = 1) -> dict[str, Any]:
        """A strict object schema whose every instance is short: words to choose from, booleans, lists, objects in it."""
        count = 2 + self.number(f"{name}/count", 3)
        fields = self.shuffled(f"{name}/fields", FIELDS)[:count]
        kinds = ("words", "words", "boolean", "number", "list", "object" if depth else "words")
        properties = {
            field: self._field(f"{name}/{field}", self.choice(f"{name}/{field}/kind", kinds), depth) for field in fields
        }
        return {"type": "object", "properties": properties, "required": list(fields), "additionalProperties": False}

    def _field(self, name: str, kind: str, depth: int) -> dict[str, Any]:
        words = [self.word(f"{name}/{i}") for i in range(3)]
        match kind:
            case "boolean":
                return {"type": "boolean"}
            case "number":
                return {"type": "integer", "enum": [self.number(f"{name}/{i}", 1000) + 1000 * i for i in range(3)]}
            case "list":
                return {"type": "array", "items": {"type": "string", "enum": words}, "minItems": 1, "maxItems": 2}
            case "object":
                return self.schema(name, depth=depth - 1)
        return {"type": "string", "enum": words}
