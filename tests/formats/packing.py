"""Whole checkpoints in the formats of GPTQ's and AWQ's tools, packed word by word from the formats' definitions.

Rounding is to nearest, good enough for tests; what counts is that codes, scales and zero points are known.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from freehold.formats import open_checkpoint

AWQ_PLACES = [0, 2, 4, 6, 1, 3, 5, 7]
"""Which output of eight each four bits of a word hold, the lowest first."""


def rounded(weights: NDArray[np.float32], group: int, *, symmetric: bool) -> tuple[NDArray[Any], ...]:
    """Codes [N, K], float16 scales [N, G] and zero points [N, G] (1 .. 15, 8 where symmetric)."""
    rows, columns = weights.shape
    grouped = weights.reshape(rows, columns // group, group).astype(np.float64)
    if symmetric:
        scales = (np.abs(grouped).max(axis=2) / 7.5 + 1e-6).astype(np.float16)
        zeros = np.full(scales.shape, 8)
    else:
        low, high = grouped.min(axis=2), grouped.max(axis=2)
        scales = ((high - low) / 14 + 1e-6).astype(np.float16)
        zeros = np.clip(np.rint(-low / scales.astype(np.float64)), 1, 15)
    codes = np.clip(np.rint(grouped / scales.astype(np.float64)[:, :, None] + zeros[:, :, None]), 0, 15)
    return codes.reshape(rows, columns).astype(np.uint32), scales, zeros.astype(np.uint32)


def words(values: NDArray[np.uint32], places: list[int]) -> NDArray[np.int32]:
    """[n, 8m] four-bit values as int32 [n, m]: bits 4i .. 4i+3 of a word hold its value number places[i]."""
    out = np.zeros((len(values), values.shape[1] // 8), np.uint32)
    for place, which in enumerate(places):
        out |= values[:, which::8] << np.uint32(4 * place)
    return out.view(np.int32)


def gptq_tensors(codes: NDArray[Any], scales: NDArray[Any], zeros: NDArray[Any]) -> dict[str, NDArray[Any]]:
    group = codes.shape[1] // scales.shape[1]
    return {
        "qweight": words(codes, list(range(8))).T,
        "qzeros": words((zeros - 1).T, list(range(8))),
        "scales": scales.T,
        "g_idx": np.arange(codes.shape[1], dtype=np.int32) // group,
    }


def awq_tensors(codes: NDArray[Any], scales: NDArray[Any], zeros: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {"qweight": words(codes.T, AWQ_PLACES), "qzeros": words(zeros.T, AWQ_PLACES), "scales": scales.T}


def packed(source: Path, out: Path, method: str, group: int, *, symmetric: bool = False) -> Path:
    """A dense directory with all its linear layers packed."""
    out.mkdir(parents=True)
    for file in source.glob("*.json"):
        shutil.copy(file, out)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": group}
    (out / "config.json").write_text(json.dumps(config))
    pack = gptq_tensors if method == "gptq" else awq_tensors
    tensors: dict[str, NDArray[Any]] = {}
    with open_checkpoint(source) as checkpoint:
        for name in checkpoint.names():
            values = checkpoint.float32(name)
            if name.endswith("_proj.weight"):
                made = pack(*rounded(values, group, symmetric=symmetric))
                tensors |= {f"{name.removesuffix('weight')}{part}": value for part, value in made.items()}
            else:
                tensors[name] = values
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, out / "model.safetensors")
    return out
