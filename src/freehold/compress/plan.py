"""What becomes of each tensor, and why. Reads names, shapes and types only; no data, no arithmetic."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from freehold.compress.options import GROUP_SIZES, KEEP, CompressOptions
from freehold.errors import FormatError
from freehold.formats import TensorInfo

EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings)\.weight$")
OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
_TIEABLE = re.compile(r"^(?P<prefix>(.*\.)?)model\.embed_tokens\.weight$")
_ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate)\.weight$")
_KEY_VALUE = re.compile(r"(^|\.)(k_proj|v_proj)\.weight$")
_OTHER_EMBEDDING = re.compile(r"embed|(^|\.)wpe\.")
_FLOATS = {"F64": "F32", "F32": "F32", "F16": "F16", "BF16": "BF16"}

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "mixtral"})
"""`model_type`s whose linear layers are just the 2-D `.weight` tensors that are neither embeddings nor routers."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """A grid.

    Args:
        bits: 3, 4, 5, 6 or 8.
        group_size: columns that share a scale; None = the whole row.
        symmetric: no zero points.
        packed: "pack-quantized" (several codes to an int32); else "int-quantized", one int8 each. Embeddings need the
            latter: transformers ties and initialises them by their `weight`, which packing would take away.
    """

    bits: int
    group_size: int | None
    symmetric: bool
    packed: bool

    @property
    def text(self) -> str:
        """For people: "int4 g32"."""
        group = "per row" if self.group_size is None else f"g{self.group_size}"
        return f"int{self.bits} {group}" + ("" if self.symmetric else " asymmetric")


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """What becomes of one tensor.

    Args:
        info: the source tensor.
        role: "linear", "embedding", "output" or "other".
        scheme: the grid; None = kept.
        dtype: type it is kept in: "F32", "F16" or "BF16"; "" when quantized.
        reason: why, in a few words.
        group, cost: the input shared with other tensors, and the nats of KL divergence that group is predicted to lose.
        tied: name of the output module that shares this embedding; "" for none.
        scale_dtype: the source is on this grid already and is kept, its scales in this type; "" = it is rounded.
    """

    info: TensorInfo
    role: str
    scheme: Scheme | None
    dtype: str
    reason: str
    tied: str = ""
    group: str = ""
    cost: float | None = None
    scale_dtype: str = ""

    @property
    def name(self) -> str:
        """Hugging Face name of the source tensor."""
        return self.info.name

    @property
    def module(self) -> str:
        """The name without ".weight"."""
        return self.info.name.removesuffix(".weight")


@dataclass(frozen=True, slots=True)
class Plan:
    """All tensors, in the source's order, and what the user should know.

    `curve` holds predicted (bits per weight, nats of KL divergence) of other budgets.
    """

    tensors: tuple[TensorPlan, ...]
    warnings: tuple[str, ...]
    curve: tuple[tuple[float, float], ...] = ()


class Header(Protocol):
    """The part of a checkpoint that planning reads."""

    @property
    def config(self) -> dict[str, Any]: ...  # noqa: D102
    def names(self) -> list[str]: ...  # noqa: D102
    def info(self, name: str) -> TensorInfo: ...  # noqa: D102


def make_plan(checkpoint: Header, options: CompressOptions) -> Plan:
    """Decide for every tensor.

    Raises:
        FormatError: nothing in it can be compressed.
    """
    names = checkpoint.names()
    has_output = any(OUTPUT.search(name) for name in names)
    tensors = tuple(_decide(checkpoint.info(name), options, has_output) for name in names)
    if not any(tensor.role == "linear" for tensor in tensors):
        raise FormatError(
            f"expected linear layers (2-D tensors named *.weight), found none among {len(names)} tensors",
            hint="is this a language model's checkpoint?",
        )
    return Plan(tensors, _warnings(checkpoint.config, tensors))


def _decide(info: TensorInfo, options: CompressOptions, has_output: bool) -> TensorPlan:
    if len(info.shape) == 2 and 0 not in info.shape and info.name.endswith(".weight"):
        if EMBEDDING.search(info.name):
            return _embedding(info, options, has_output)
        if OUTPUT.search(info.name):
            return _wide(info, "output", options, "")
        if _ROUTER.search(info.name):
            return _keep(info, "router: picking a wrong expert costs more than its bytes")
        if _OTHER_EMBEDDING.search(info.name):
            return _keep(info, "an embedding of another kind than tokens")
        return _linear(info, options)
    if len(info.shape) == 1:
        return _keep(info, "one-dimensional (norm or bias): negligible size, large effect")
    return _keep(info, f"not a linear layer's weight: shape {list(info.shape)}")


def _linear(info: TensorInfo, options: CompressOptions) -> TensorPlan:
    columns = info.shape[1]
    group = _group(columns, options.group_size)
    if group is None:
        reason = f"input width {columns} is not a multiple of {GROUP_SIZES[0]}: 8 bits with one scale per row"
        return TensorPlan(info, "linear", Scheme(8, None, True, packed=True), "", reason)
    rows = info.shape[0]
    bits, reason = options.bits, "linear layer"
    if bits < options.kv_bits and 2 * rows <= columns and _KEY_VALUE.search(info.name):
        bits = options.kv_bits
        reason = f"key or value projection shared by several query heads: {bits} bits, small and sensitive"
    scheme = Scheme(bits, group, options.symmetric, packed=True)
    if group != options.group_size:
        reason += f"; groups of {group}, because {options.group_size} does not divide its width {columns}"
    return TensorPlan(info, "linear", scheme, "", reason)


def _embedding(info: TensorInfo, options: CompressOptions, has_output: bool) -> TensorPlan:
    if has_output:
        return _wide(info, "embedding", options, "")
    tieable = _TIEABLE.match(info.name)
    if tieable is None:
        return _keep(info, "shared with an output layer whose name is unknown", role="embedding")
    return _wide(info, "embedding", options, tieable["prefix"] + "lm_head")


def _wide(info: TensorInfo, role: str, options: CompressOptions, tied: str) -> TensorPlan:
    """Embedding and output layer: 8 bits, as an error there reaches every token's logits directly."""
    if options.embedding_bits == KEEP:
        dtype = "F16" if info.dtype == "F16" else "BF16"
        return TensorPlan(info, role, None, dtype, "kept in 16 bits as asked", tied)
    # One scale per row: groups of 32 took SmolLM2-135M's KL divergence from 0.2457 to 0.2449, for 0.5 bits per weight.
    reason = f"{role} layer: 8 bits with one scale per row, its errors reach the logits directly"
    if tied:
        reason += "; output layer shares it"
    return TensorPlan(info, role, Scheme(8, None, True, packed=False), "", reason, tied)


def _keep(info: TensorInfo, reason: str, role: str = "other") -> TensorPlan:
    return TensorPlan(info, role, None, _FLOATS.get(info.dtype, "BF16"), reason)


def _group(columns: int, wanted: int) -> int | None:
    fitting = [size for size in GROUP_SIZES if size <= wanted and columns % size == 0]
    return max(fitting, default=None)


def _warnings(config: dict[str, Any], tensors: tuple[TensorPlan, ...]) -> tuple[str, ...]:
    family = config.get("model_type")
    warnings = []
    if family not in FAMILIES:
        warnings.append(
            f"unknown model family {str(family)[:40]!r}: linear layers were found by name and shape; check the result"
        )
    grids = _count(t.info.dtype for t in tensors if t.scheme is not None and t.info.dtype not in _FLOATS)
    if grids:
        found = ", ".join(f"{count} tensors {dtype}" for dtype, count in grids.items())
        warnings.append(
            f"the source was already quantized ({found}): errors are measured against it, and add to the ones it had"
        )
    return tuple(warnings)


def _count(values: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts
