"""The instruction set: a model is a flat list of fused operations over named buffers.

`engine/models/*` emit a `Program` once, at load. An executor (`executor.Executor` in C++, `reference.ReferenceExecutor`
in NumPy) runs the whole list once per scheduler step. This module knows no architectures, files or schedulers.

Operations (`in`, `out` are buffers of float32 rows; T = rows of the step, R = rows whose logits are wanted):

    kind        inputs     weights        attrs                               meaning
    embed                  table [V, C]   scale                               out[t] = table[token[t]] * scale
    rmsnorm     x          gain [C]       eps, offset, accumulate             out (+)= x / rms(x) * (gain + offset)
    linear      x          matrix [N, K]  column, accumulate                  out[:, column:column+N] (+)= x @ W.T (+ bias)
    headnorm               gain [D]       eps, offset, column, heads          in place: RMSNorm over each head of `out`
    rope_table             inv_freq       factor                              out[t] = cos(pos*f), sin(pos*f), times factor
    rope        table                     column, heads, head_dim             in place: rotate halves of each head of `out`
    attention   qkv                       layer, heads, kv_heads, head_dim,   store K and V, then attend over the pages
                                          scale, window                       of the row's sequence; with a `window` each
                                                                              query sees that many tokens, itself included
    silu_mul    x [T, 2C]                                                     out = silu(x[:, :C]) * x[:, C:]
    gelu_mul    x [T, 2C]                                                     the same with GELU (by tanh)
    gather      x [T, C]                                                      out[r] = x[outputs[r]]
    residual    x [T, C]                  unit                                out = x - x rounded to int8 in groups of `unit`

`linear` may carry a second weight, its bias [N]. Quantized matrices read activations quantized dynamically to int8 in
groups (see `reference.quantize_rows`). Every row is computed by the same operations in the same order whatever the
batch, so the result of a sequence does not depend on batch size, chunking or threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

PAGE = 64
"""Tokens per page of the KV cache."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """A named float32 buffer of a program.

    Args:
        columns: values per row.
        rows: "tokens" (one row for each token of the step) or "outputs" (one for each row whose logits are wanted).
    """

    columns: int
    rows: str = "tokens"


@dataclass(frozen=True, slots=True)
class Op:
    """One operation; see the table in this module's docstring."""

    kind: str
    out: str
    inputs: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    attrs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """How a program's weight is made from a checkpoint's tensors.

    Args:
        sources: checkpoint tensor names; several are stacked along rows (fused QKV, fused gate and up).
        kind: "matrix" (stored as the checkpoint has it: int4, int8, bf16 or float32), "vector" (float32) or
            "constant" (not in the checkpoint: `value` holds it).
        value: the array of a constant.
    """

    sources: tuple[str, ...]
    kind: str = "matrix"
    value: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """A whole model as operations.

    Args:
        architecture: the family's name, for people.
        buffers, ops, weights: the program; `logits` [R, vocabulary] is the buffer that holds the result.
        layers, heads, kv_heads, head_dim: shape of attention, which fixes the KV cache.
        vocabulary: rows of the embedding.
        context: longest sequence in tokens.
    """

    architecture: str
    buffers: Mapping[str, Buffer]
    ops: tuple[Op, ...]
    weights: Mapping[str, WeightSpec]
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int


@dataclass(frozen=True, slots=True)
class Step:
    """What one run of a program works on. T tokens of S sequences; logits for R of the rows.

    Args:
        tokens: int32 [T], token ids; rows of one sequence are consecutive and in order of position.
        positions: int32 [T], position of each token in its sequence.
        sequences: int32 [T], row of `tables` for each token.
        tables: int32 [S, P], page numbers of each sequence in order; entry p holds positions p*PAGE to p*PAGE+PAGE-1.
        outputs: int32 [R], indices into the T rows.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    sequences: NDArray[np.int32]
    tables: NDArray[np.int32]
    outputs: NDArray[np.int32]
