"""What can be said of a model from its headers. Reads no weights and knows no store."""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.errors import FreeholdError
from freehold.formats.writing import tree_size


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model in figures; None where its files don't say.

    Attributes:
        name: the reference asked for.
        path: directory or file.
        format: "gguf", "safetensors" or "compressed-tensors".
        architecture: as config.json names it.
        parameters: numbers in all tensors.
        bits_per_weight: bits of tensor data for each of them, scales included.
        quantization: the number format that most parameters have.
        context: longest sequence in tokens.
        vocabulary: token ids.
        size: bytes on disk.
        licence: SPDX identifier, or what the model's own card says.
    """

    name: str
    path: Path
    format: str
    architecture: str | None
    parameters: int
    bits_per_weight: float
    quantization: str | None
    context: int | None
    vocabulary: int | None
    size: int
    licence: str | None


def card_of(name: str, path: Path, licence: str | None = None) -> ModelCard:
    """Read a model's headers.

    Raises:
        FormatError, UnsupportedError: as `open_checkpoint`.
    """
    from freehold.formats.checkpoint import open_checkpoint

    with contextlib.closing(open_checkpoint(path)) as checkpoint:
        config = checkpoint.config
        numbers: Counter[str] = Counter()
        stored = 0
        for tensor in map(checkpoint.info, checkpoint.names()):
            numbers[tensor.dtype] += math.prod(tensor.shape)
            stored += tensor.nbytes
    parameters = sum(numbers.values())
    return ModelCard(
        name=name,
        path=path,
        format=_format(path, config),
        architecture=_architecture(config),
        parameters=parameters,
        bits_per_weight=8 * stored / parameters if parameters else 0.0,
        quantization=numbers.most_common(1)[0][0] if numbers else None,
        context=_integer(config.get("max_position_embeddings")),
        vocabulary=_integer(config.get("vocab_size")),
        size=_size(path),
        licence=licence or declared_licence(path),
    )


def _format(path: Path, config: dict[str, Any]) -> str:
    if path.is_file():
        return "gguf"
    quantization = config.get("quantization_config")
    return str(quantization.get("quant_method", "quantized")) if isinstance(quantization, dict) else "safetensors"


def _architecture(config: dict[str, Any]) -> str | None:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else config.get("model_type")


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _size(path: Path) -> int:
    """Bytes, with the links of a snapshot followed."""
    if path.is_file():
        return path.stat().st_size
    links = sum(file.stat().st_size for file in path.rglob("*") if file.is_symlink() and file.is_file())
    return tree_size(path) + links


def declared_licence(path: Path) -> str | None:
    """`general.license` of a GGUF file, or `license:` at the head of a README.md."""
    if path.is_file():
        from freehold.formats.gguf import GGUFFile

        try:
            with contextlib.closing(GGUFFile(path)) as file:
                found = file.metadata.get("general.license")
        except FreeholdError:
            return None
        return found if isinstance(found, str) else None
    readme = path / "README.md"
    if not readme.is_file():
        return None
    with readme.open(encoding="utf-8", errors="replace") as text:
        head = text.read(1 << 16)
    front = re.match(r"---\n(.*?)\n---", head, re.DOTALL)
    found = re.search(r"^license:\s*[\"']?([\w.+-]+)", front[1], re.MULTILINE) if front else None
    return found[1] if found else None
