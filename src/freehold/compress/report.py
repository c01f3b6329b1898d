"""What a compression did: plain data, for `freehold-report.json` and for whoever draws a table of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor of the source.

    Args:
        name, role, shape: as planned.
        source_dtype: number format in the source.
        stored: number format in the result: "int4 g32", "int8 g32", "F32" ...
        source_bytes, bytes: size before and after, scales and zero points included.
        relative_error: |W - stored W| / |W| (Frobenius norms) against the source as it was; 0.0 where kept exactly.
        reason: why it is stored so.
        unrounded: it was on that grid already, and its codes, scales and zero points are those of the source.
        group: the input it shares with others; cost: nats of KL divergence the group is predicted to lose. "" and None
            without calibration.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    source_dtype: str
    stored: str
    source_bytes: int
    bytes: int
    relative_error: float
    reason: str
    group: str = ""
    cost: float | None = None
    unrounded: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """The whole run.

    Args:
        source: name of the source directory or file.
        source_sha256: digest over the source's weight and config files.
        source_name, source_licence, source_base: its name (or hub id), its licence and what it was made from, as it
            declares them; None where it doesn't.
        options: choices that shaped the result.
        method: how scales were found, in a sentence.
        parameters: weights of the model (a shared embedding counts once).
        source_bytes, bytes: size of the weight tensors before, and of the weight files after.
        bf16_bytes: two bytes for each parameter: what the sizes are compared with.
        smaller_than_bf16: 1 - bytes/bf16_bytes.
        bits_per_weight: 8 * bytes / parameters.
        error_mean: relative error of all quantized weights together; error_max, error_max_tensor: the worst tensor.
        tensors: one entry for each tensor.
        warnings: what the user should know.
        seconds: wall-clock time of this run; peak_rss_bytes: the process's peak memory so far.
        resumed_tensors: tensors taken over from an interrupted run.
        version: of Freehold.
        predicted_kld: the groups' costs added up; None without calibration.
        curve: predicted (bits per weight, nats) of other budgets.
        two_pass: modules whose inputs int8 can't hold, so that the engine reads them twice, and their activation group.
        activation_kld: nats that int8 activations are predicted to cost, those modules left out.
        calibration: what the statistics were measured on; None = none were used.
        tuning: how scales were tuned, with the divergence before and after on text held out (`engine.tune.Tuning`);
            None = they were not.
    """

    source: str
    source_sha256: str
    source_name: str | None
    source_licence: str | None
    source_base: str | None
    options: dict[str, int | bool | float | str | None]
    method: str
    parameters: int
    source_bytes: int
    bytes: int
    bf16_bytes: int
    smaller_than_bf16: float
    bits_per_weight: float
    error_mean: float
    error_max: float
    error_max_tensor: str
    tensors: tuple[TensorReport, ...]
    warnings: tuple[str, ...]
    seconds: float
    peak_rss_bytes: int
    resumed_tensors: int
    version: str
    calibration: dict[str, Any] | None = None
    predicted_kld: float | None = None
    curve: tuple[tuple[float, float], ...] = ()
    two_pass: dict[str, int] = field(default_factory=dict)
    activation_kld: float | None = None
    tuning: dict[str, Any] | None = None

    @property
    def kept(self) -> tuple[TensorReport, ...]:
        """Tensors that were not quantized, each with its reason."""
        return tuple(tensor for tensor in self.tensors if not tensor.stored.startswith("int"))

    @property
    def tuned_words(self) -> str:
        """What tuning did, in a sentence; empty without it."""
        if self.tuning is None:
            return ""
        t = self.tuning
        return (
            f"scales and norm gains tuned to the original for {t['seconds'] / 60:.1f} minutes on {t['tokens']:,} tokens; on "
            f"{t['held_out']:,} tokens held out the KL divergence went from {t['kld_before']:.4f} to {t['kld_after']:.4f} "
            f"nats, top-1 agreement from {t['top1_before']:.1%} to {t['top1_after']:.1%}"
        )

    def to_json(self) -> str:
        """Indented JSON, all fields."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode() + "\n"


def by_kind(tensors: Iterable[TensorReport]) -> list[dict[str, Any]]:
    """Tensors counted by role and format, in order of first appearance: a short table instead of hundreds of rows."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for tensor in tensors:
        key = (tensor.role, tensor.source_dtype, tensor.stored)
        row = rows.setdefault(
            key,
            {"role": key[0], "source_dtype": key[1], "stored": key[2], "tensors": 0, "bytes": 0, "error_max": 0.0},
        )
        row["tensors"] += 1
        row["bytes"] += tensor.bytes
        row["error_max"] = max(row["error_max"], tensor.relative_error)
    return list(rows.values())
