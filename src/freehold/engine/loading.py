"""Checkpoint and program meet: tensors become the weights an executor takes.

The only place where `formats` and `kernels` touch. Knows no architectures: what is needed, and how large, is read off
the program.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from freehold.errors import FormatError, UnsupportedError, UsageError
from freehold.formats.checkpoint import Checkpoint
from freehold.formats.tensors import QuantizedTensor, Tensor, widened
from freehold.kernels.matrix import FloatMatrix, Matrix, QuantizedMatrix, from_tensor
from freehold.kernels.program import Op, Program, WeightSpec

F32 = NDArray[np.float32]
Precision = Literal["stored", "f32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("stored", "f32", "bf16")
GROUPS = (32, 64, 128)

# Tensors that some checkpoints carry and no program needs: they follow from the config or belong to a tied head.
_DERIVED = ("rotary_emb.inv_freq", "lm_head.weight")


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """Everything an executor needs besides the program.

    Args:
        weights: by the program's names; names with the same sources share one object.
        parameters: numbers in the checkpoint's tensors that the program uses, each tensor once.
        stored_bytes: what these take in the file.
        notes: what was not taken as stored, and why.
    """

    weights: dict[str, Matrix | F32]
    parameters: int
    stored_bytes: int
    notes: list[str] = field(default_factory=list)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per parameter, embeddings, scales and norms included."""
        return 8 * self.stored_bytes / self.parameters


def load_weights(checkpoint: Checkpoint, program: Program, precision: Precision = "stored") -> LoadedWeights:
    """All weights of a program.

    Args:
        precision: "stored" keeps each tensor's number format; "f32" and "bf16" dequantize every matrix (bfloat16
            tensors stay as they are under "f32": widening them changes nothing).

    Raises:
        FormatError: a tensor is missing or has the wrong shape; names it with expected and found.
        UnsupportedError: the checkpoint has layer tensors that the architecture doesn't use.
    """
    reader = WeightReader(checkpoint, program, precision)
    read = dict(reader)
    weights = {name: read[first] for name, first in first_names(program).items()}
    return LoadedWeights(weights, reader.parameters, reader.stored_bytes, reader.notes())


def first_names(program: Program) -> dict[str, str]:
    """Each of a program's weights, and the first that is made from the same tensors: they share one object."""
    first: dict[tuple[str, tuple[str, ...]], str] = {}
    return {
        name: first.setdefault((spec.kind, spec.sources), name) if spec.sources else name
        for name, spec in program.weights.items()
    }


class WeightReader:
    """A program's weights, one after the other; those made from the same tensors once, by their first name.

    Args:
        precision: see `load_weights`, which has the errors, too: names are checked at once, shapes as they are read.
    """

    def __init__(self, checkpoint: Checkpoint, program: Program, precision: Precision) -> None:
        if precision not in PRECISIONS:
            raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        used = {source for spec in program.weights.values() for source in spec.sources}
        _check_names(checkpoint, used)
        infos = [checkpoint.info(name) for name in used]
        self.parameters = sum(math.prod(info.shape) for info in infos)
        self.stored_bytes = sum(info.nbytes for info in infos)
        self._checkpoint = checkpoint
        self._program = program
        self._loader = _Loader(checkpoint, precision)

    def __iter__(self) -> Iterator[tuple[str, Matrix | F32]]:
        shapes = expected_shapes(self._program)
        for name, first in first_names(self._program).items():
            if name != first:
                continue
            spec = self._program.weights[name]
            loaded = self._loader.load(spec)
            if loaded.shape != shapes[name]:
                where = " + ".join(spec.sources) or name
                raise FormatError(
                    f"{self._checkpoint.path}: {where} must have shape {shapes[name]}, found {loaded.shape}"
                )
            yield name, loaded

    def notes(self) -> list[str]:
        """What was not taken as stored so far, and why."""
        return self._loader.notes()


def load_weight(checkpoint: Checkpoint, spec: WeightSpec, precision: Precision) -> Matrix | F32:
    """One weight of a program; errors as `load_weights`, shapes unchecked."""
    return _Loader(checkpoint, precision).load(spec)


class _Loader:
    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        self._checkpoint = checkpoint
        self._precision = precision
        self._widened: dict[str, int] = {}

    def load(self, spec: WeightSpec) -> Matrix | F32:
        if spec.kind == "constant":
            return _constant(spec)
        if spec.kind == "vector":
            return np.concatenate([self._vector(name) for name in spec.sources])
        parts = tuple(self._part(name) for name in spec.sources)
        columns = {part.shape[1] for part in parts}
        if len(columns) > 1:
            found = ", ".join(f"{name} {part.shape}" for name, part in zip(spec.sources, parts, strict=True))
            raise FormatError(f"{self._checkpoint.path}: stacked tensors must have the same columns, found {found}")
        return Matrix(parts)

    def notes(self) -> list[str]:
        return [f"{count} matrices run in float32: {reason}" for reason, count in self._widened.items()]

    def _vector(self, name: str) -> F32:
        vector = self._checkpoint.float32(name)
        if vector.ndim != 1:
            raise FormatError(f"{self._checkpoint.path}: {name} must have one dimension, found shape {vector.shape}")
        return np.ascontiguousarray(vector, dtype=np.float32)

    def _part(self, name: str) -> QuantizedMatrix | FloatMatrix:
        tensor = self._checkpoint.load(name)
        shape = tensor.codes.shape if isinstance(tensor, QuantizedTensor) else tensor.shape
        if len(shape) != 2:
            raise FormatError(f"{self._checkpoint.path}: {name} must have two dimensions, found shape {shape}")
        if self._precision == "stored":
            return self._stored(tensor)
        if self._precision == "bf16":
            return FloatMatrix(to_bfloat16(tensor))
        return FloatMatrix(tensor.float32() if isinstance(tensor, QuantizedTensor) else tensor)

    def _stored(self, tensor: Tensor) -> QuantizedMatrix | FloatMatrix:
        if not isinstance(tensor, QuantizedTensor):
            return from_tensor(tensor)
        reason = _misfit(tensor)
        if reason is None:
            return from_tensor(widened(tensor, 4 if tensor.bits <= 4 else 8))  # the kernels have int4 and int8
        self._widened[reason] = self._widened.get(reason, 0) + 1
        return FloatMatrix(tensor.float32())


def _constant(spec: WeightSpec) -> F32:
    if spec.value is None:
        raise ValueError("a constant needs a value")
    return spec.value


def to_bfloat16(tensor: Tensor) -> NDArray[np.uint16]:
    """A tensor's values as bfloat16 bits, rounded half to even."""
    if isinstance(tensor, QuantizedTensor):
        tensor = tensor.float32()
    if tensor.dtype == np.uint16:
        return tensor.astype(np.uint16, copy=False)
    bits = np.ascontiguousarray(tensor, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype(np.uint16)


def _misfit(tensor: QuantizedTensor) -> str | None:
    """Why the kernels can't take a tensor as it is, or None."""
    if tensor.group_size not in GROUPS and tensor.group_size != tensor.codes.shape[1]:
        return f"the kernels have groups of {', '.join(map(str, GROUPS))} or a whole row, not {tensor.group_size}"
    return None


def _check_names(checkpoint: Checkpoint, used: set[str]) -> None:
    names = set(checkpoint.names())
    missing = sorted(used - names)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FormatError(f"{checkpoint.path}: tensor {missing[0]}{more} is missing")
    extra = sorted(name for name in names - used if not name.endswith(_DERIVED))
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise UnsupportedError(
            f"{checkpoint.path}: tensor {extra[0]}{more} has no place in this architecture",
            hint="the config may name another architecture, or lack attention_bias or mlp_bias",
        )


def expected_shapes(program: Program) -> dict[str, tuple[int, ...]]:
    """The shape of every weight, from the operations that use it."""
    shapes: dict[str, tuple[int, ...]] = {}
    for op in program.ops:
        for name, shape in zip(op.weights, _shapes_of(op, program), strict=False):
            shapes[name] = shape
    return shapes


def _shapes_of(op: Op, program: Program) -> tuple[tuple[int, ...], ...]:
    columns = program.buffers[op.out].columns
    if op.kind == "embed":
        return ((program.vocabulary, columns),)
    if op.kind == "linear":
        rows = columns - int(op.attrs.get("column", 0))
        return (rows, program.buffers[op.inputs[0]].columns), (rows,)
    if op.kind == "headnorm":
        return ((program.head_dim,),)
    if op.kind == "rope_table":
        return ((columns // 2,),)
    return ((columns,),)
