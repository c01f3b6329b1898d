"""The C++ executor behind the same face as `reference.ReferenceExecutor`: packs weights, runs steps without the GIL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import numpy as np
from numpy.typing import NDArray

from freehold.kernels import _native
from freehold.kernels.matrix import FloatMatrix, Matrix, QuantizedMatrix
from freehold.kernels.program import Op, Program, Step

F32 = NDArray[np.float32]


def pack(part: QuantizedMatrix | FloatMatrix) -> _native.Packed:
    """A matrix part in the kernels' own layout (see `csrc/freehold.h`), the same for every ISA tier."""
    if isinstance(part, QuantizedMatrix):
        offsets = None if part.offsets is None else np.ascontiguousarray(part.offsets, np.float32)
        scales = np.ascontiguousarray(part.scales, np.float32)
        return _native.pack_quantized(np.ascontiguousarray(part.codes), scales, offsets, part.bits, part.group)
    if part.data.dtype == np.uint16:
        return _native.pack_bf16(np.ascontiguousarray(part.data))
    return _native.pack_float(np.ascontiguousarray(part.data, np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """A matrix in the kernels' layout: parts stacked along rows."""

    parts: tuple[_native.Packed, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]


def pack_matrix(matrix: Matrix) -> PackedMatrix:
    """A matrix in the kernels' layout; neighbouring parts of one number format become one."""
    merged = [_joined(list(parts)) for _, parts in groupby(matrix.parts, key=_kind)]
    return PackedMatrix(tuple(pack(part) for part in merged))


def _kind(part: QuantizedMatrix | FloatMatrix) -> tuple[object, ...]:
    if isinstance(part, FloatMatrix):
        return (part.data.dtype.str,)
    return part.bits, part.group, part.symmetric


def _joined(parts: list[QuantizedMatrix | FloatMatrix]) -> QuantizedMatrix | FloatMatrix:
    """Parts of one kind stacked along rows."""
    if len(parts) == 1:
        return parts[0]
    floats = [part.data for part in parts if isinstance(part, FloatMatrix)]
    if floats:
        return FloatMatrix(cast(F32, np.concatenate(floats)))  # or uint16: one type, see `_kind`
    codes = [part for part in parts if isinstance(part, QuantizedMatrix)]
    offsets = [part.offsets for part in codes if part.offsets is not None]
    return QuantizedMatrix(
        np.concatenate([part.codes for part in codes]),
        np.concatenate([part.scales for part in codes]),
        np.concatenate(offsets) if offsets else None,
        codes[0].bits,
        codes[0].group,
    )


class Executor:
    """Runs a program with one ISA tier's kernels on a team of threads.

    Args:
        program: what to run.
        weights: for each of the program's weights a matrix (packed here, unless it is already) or a float32 vector.
        pages: size of the KV cache in pages of `program.PAGE` tokens.
        kv_dtype: "int8", "f16" or "f32".
        threads: members of the team, the caller included.
        tier: "portable", "avx2", "avx512", "amx" (or "amx-emulated", for tests).

    Raises:
        ValueError: the program and its weights don't fit each other, or this machine can't run the tier.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Matrix | PackedMatrix | F32],
        *,
        pages: int,
        kv_dtype: str = "int8",
        threads: int = 1,
        tier: str = "portable",
    ) -> None:
        self.program = program
        self.threads = threads
        self.tier = tier
        self._buffers = {name: i for i, name in enumerate(program.buffers)}
        packed: dict[int, tuple[_native.Packed, ...]] = {}
        self._native = _native.Executor(
            tier=tier,
            buffers=[(buffer.columns, buffer.rows == "outputs") for buffer in program.buffers.values()],
            program=[self._encode(op, weights, packed) for op in program.ops],
            logits=self._buffers["logits"],
            kv_type=kv_dtype,
            layers=program.layers,
            pages=pages,
            kv_heads=program.kv_heads,
            head_dim=program.head_dim,
            context=program.context,
            vocabulary=program.vocabulary,
            threads=threads,
        )
        self.weight_bytes = sum(part.nbytes for parts in packed.values() for part in parts)
        read = {id(weights[op.weights[0]]) for op in program.ops if op.kind == "linear"}
        self.step_bytes = sum(part.nbytes for key in read for part in packed[key])
        self.kv_bytes: int = self._native.kv_bytes
        self.meetings: int = self._native.meetings

    def run(self, step: Step) -> F32:
        """Run every operation for one step; returns logits float32 [R, vocabulary]."""
        return self._native.run(
            np.ascontiguousarray(step.tokens, np.int32),
            np.ascontiguousarray(step.positions, np.int32),
            np.ascontiguousarray(step.sequences, np.int32),
            np.ascontiguousarray(step.tables, np.int32),
            np.ascontiguousarray(step.outputs, np.int32),
        )

    @property
    def steps_alone(self) -> int:
        """Steps that one thread did alone, because other programs wanted the processors too."""
        return self._native.steps_alone

    def copy_page(self, source: int, target: int) -> None:
        """Copy one KV page, in all layers, onto another."""
        self._native.copy_page(source, target)

    def profile(self) -> dict[str, float]:
        """Seconds in each kind of operation (a linear by its weight) since the last call; the first call turns it on."""
        out: dict[str, float] = {}
        for op, seconds in zip(self.program.ops, self._native.profile(), strict=True):
            name = op.kind if op.kind != "linear" else f"linear {op.weights[0].rsplit('.', 1)[-1]}"
            out[name] = out.get(name, 0.0) + seconds
        return out

    def buffer(self, name: str, rows: int) -> F32:
        """A copy of the first rows of a buffer as the last step left it, float32 [rows, columns]."""
        return self._native.buffer(self._buffers[name], rows)

    def _encode(
        self,
        op: Op,
        weights: Mapping[str, Matrix | PackedMatrix | F32],
        packed: dict[int, tuple[_native.Packed, ...]],
    ) -> tuple[str, int, int, list[_native.Packed], F32 | None, dict[str, float]]:
        parts: tuple[_native.Packed, ...] = ()
        vector: F32 | None = None
        for name in op.weights:
            weight = weights[name]
            if isinstance(weight, np.ndarray):
                vector = np.ascontiguousarray(weight, np.float32)
                continue
            if id(weight) not in packed:  # tied matrices are packed once
                packed[id(weight)] = (weight if isinstance(weight, PackedMatrix) else pack_matrix(weight)).parts
            parts = packed[id(weight)]
        source = self._buffers[op.inputs[0]] if op.inputs else -1
        return op.kind, self._buffers[op.out], source, list(parts), vector, dict(op.attrs)
