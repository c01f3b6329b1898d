"""Checkpoints as GPTQ's and AWQ's tools write them: packed int4 and int8 weights under their logical names.

Both keep three tensors for a layer of N outputs and K inputs, weights transposed:

    scales    float [G, N], one for each output and group of inputs
    qweight   int32: GPTQ [K*bits/32, N], eight inputs of an output to a word, the first in the lowest bits;
              AWQ [K, N/8], eight outputs to a word in the order 0 2 4 6 1 3 5 7
    qzeros    int32 [G, N*bits/32], zero points packed along the outputs: GPTQ in order and less 1 (in "gptq_v2" not),
              AWQ in its own order

and w = scale * (code - zero). GPTQ's `g_idx` [K] names the group of each input; with act-order (`desc_act`) groups are
scattered over the columns, which no grid here can say: such a layer becomes float32, value for value.

Layouts: auto-gptq 0.7.1, nn_modules/qlinear/qlinear_cuda_old.py; autoawq 0.2.9, modules/linear/gemm.py and
utils/packing_utils.py. What is quantized is read off the tensors that are there. Knows no layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.errors import FormatError, UnsupportedError
from freehold.formats.checkpoint import CheckpointBase, load_dense
from freehold.formats.safetensors import SafetensorsSet
from freehold.formats.tensors import QuantizedTensor, Tensor, TensorInfo, bf16_to_float32, in_columns

GROUP_SIZES = (32, 64, 128)
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which four bits of a word hold output 0, 1, 2 ... of its eight."""
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_GPTQ_FORMATS = {"gptq": 1, "gptq_v2": 0}
"""What is added to a stored zero point, by `checkpoint_format`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a `quantization_config` says of all layers.

    Args:
        method: "gptq" or "awq".
        bits: 4 or 8, of layers that have no `g_idx` to read it off.
        group_size: inputs that share a scale, None = all; not binding where `varied`.
        shift: added to stored zero points, modulo 2^bits.
        varied: single layers may have other widths and groups ("dynamic").
    """

    method: str
    bits: int
    group_size: int | None
    shift: int
    varied: bool

    @classmethod
    def of(cls, path: Path, config: Mapping[str, Any]) -> Layout:
        """Read and check a `quantization_config`.

        Raises:
            FormatError: a missing or absurd value.
            UnsupportedError: widths, group sizes or layouts that can't be read.
        """
        where = f"{path}: quantization_config"
        method = str(config["quant_method"])
        bits, size = config.get("bits", config.get("w_bit")), config.get("group_size", config.get("q_group_size"))
        known = (4,) if method == "awq" else (4, 8)
        if type(bits) is not int or bits not in known:
            raise UnsupportedError(f"{where}: expected bits {' or '.join(map(str, known))}, found {bits!r:.40}")
        if type(size) is not int or size not in (-1, *GROUP_SIZES):
            raise UnsupportedError(
                f"{where}: unknown group_size {size!r:.40}", hint=f"known: {', '.join(map(str, GROUP_SIZES))}, -1"
            )
        shift = _awq_shift(where, config) if method == "awq" else _gptq_shift(where, config)
        return cls(method, bits, None if size == -1 else size, shift, bool(config.get("dynamic")))


def _gptq_shift(where: str, config: Mapping[str, Any]) -> int:
    kind = config.get("checkpoint_format", "gptq")
    if kind is None:
        kind = "gptq"
    if config.get("is_marlin_format"):
        kind = "marlin"
    if not isinstance(kind, str) or kind not in _GPTQ_FORMATS:
        known = ", ".join(_GPTQ_FORMATS)
        raise UnsupportedError(f"{where}: unknown checkpoint_format {kind!r:.60}", hint=f"known: {known}")
    return _GPTQ_FORMATS[kind]


def _awq_shift(where: str, config: Mapping[str, Any]) -> int:
    version = config.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise UnsupportedError(f"{where}: unknown AWQ version {version!r:.60}", hint="known: gemm")
    return 0


@dataclass(frozen=True, slots=True)
class _Scheme:
    """One quantized weight: [N, K], bits, inputs to a scale, and groups."""

    shape: tuple[int, int]
    bits: int
    group_size: int
    groups: int


class PackedCheckpoint(CheckpointBase):
    """A Hugging Face directory whose weights GPTQ's or AWQ's tools packed.

    Raises:
        FormatError: tensors that don't fit together or the config.
        UnsupportedError: see `Layout.of`.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], tensors: SafetensorsSet, quantization: Mapping[str, Any]
    ) -> None:
        self.path = path
        self.config = config
        self._tensors = tensors
        self._layout = Layout.of(path, quantization)
        stored = tensors.names()
        self._stored = set(stored)
        self._packed = {name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")}
        self._schemes: dict[str, _Scheme] = {}
        self._biased = {_kind(module) for module in self._packed if self._has_bias(module)}
        self._names = [name for name in map(self._logical, stored) if name is not None]

    def names(self) -> list[str]:
        """See `Checkpoint.names`."""
        return list(self._names)

    def info(self, name: str) -> TensorInfo:
        """See `Checkpoint.info`; "int4" or "int8" for a quantized weight."""
        module = self._module(name)
        if module is None:
            return self._tensors.info(name)
        scheme = self._scheme(module)
        nbytes = sum(self._tensors.info(part).nbytes for part in self._parts(module))
        return TensorInfo(name, f"int{scheme.bits}", scheme.shape, nbytes)

    def load(self, name: str) -> Tensor:
        """See `Checkpoint.load`; float32 where groups are scattered over the columns."""
        module = self._module(name)
        if module is None:
            return load_dense(self._tensors, name)
        scheme = self._scheme(module)
        scales = self._scales(module, scheme)
        zeros = self._zeros(module, scheme)
        codes = self._codes(module, scheme)
        middle = 1 << (scheme.bits - 1)
        offsets = None if (zeros == middle).all() else np.multiply(-zeros.astype(np.float32), scales)
        order = self._order(module, scheme)
        if order is None:
            return QuantizedTensor(codes, scales, offsets, scheme.bits, scheme.group_size)
        return in_columns(codes, scales, offsets, scheme.bits, order)

    def close(self) -> None:
        """See `Checkpoint.close`."""
        self._tensors.close()

    def _logical(self, stored: str) -> str | None:
        """The name a stored tensor stands for, or None for one that belongs to another."""
        module, _, part = stored.rpartition(".")
        if module not in self._packed:
            return stored
        if part == "qweight":
            return f"{module}.weight"
        if part == "bias" and _kind(module) not in self._biased:
            return None  # some versions write a bias of zeros for layers that have none
        return None if part in _PARTS else stored

    def _has_bias(self, module: str) -> bool:
        return f"{module}.bias" in self._stored and bool(self._tensors.read(f"{module}.bias").any())

    def _module(self, name: str) -> str | None:
        module = name.removesuffix(".weight")
        return module if name.endswith(".weight") and module in self._packed else None

    def _parts(self, module: str) -> list[str]:
        return [part for part in (f"{module}.{kind}" for kind in _PARTS) if part in self._stored]

    def _scheme(self, module: str) -> _Scheme:
        if module not in self._schemes:
            self._schemes[module] = self._read_scheme(module)
        return self._schemes[module]

    def _read_scheme(self, module: str) -> _Scheme:
        rows, words = self._matrix(module, "qweight", "I32")
        groups, outputs = self._matrix(module, "scales", "F16", "BF16", "F32")
        bits = self._layout.bits
        if self._layout.method == "awq":
            inputs, fits = rows, words * 8 == outputs
        else:
            inputs, fits = self._inputs(module, rows * 32 // bits), words == outputs
            bits = rows * 32 // inputs
            fits = fits and bits in (4, 8) and rows * 32 == inputs * bits
        zeros = (groups, outputs * bits // 32)
        if not fits or outputs * bits % 32 or self._matrix(module, "qzeros", "I32") != zeros:
            found = ", ".join(f"{part} {list(self._tensors.info(part).shape)}" for part in self._parts(module))
            raise self._error(module, f"its tensors don't fit together in {self._layout.bits} bits: {found}")
        size = inputs if groups == 1 else inputs // groups
        wanted = self._layout.group_size or inputs
        if size * groups != inputs or (size != inputs and size not in GROUP_SIZES):
            raise self._error(module, f"{groups} groups don't divide {inputs} columns into {GROUP_SIZES}")
        if size != wanted and not self._layout.varied:
            raise self._error(module, f"expected groups of {wanted} as the config says, found {size}")
        return _Scheme((outputs, inputs), bits, size, groups)

    def _inputs(self, module: str, otherwise: int) -> int:
        """K, from `g_idx` where that is stored."""
        name = f"{module}.g_idx"
        if name not in self._stored:
            return otherwise
        shape = self._tensors.info(name).shape
        if len(shape) != 1 or shape[0] < 1:
            raise self._error(module, f"expected g_idx [K], found {list(shape)}")
        return shape[0]

    def _matrix(self, module: str, part: str, *dtypes: str) -> tuple[int, int]:
        info = self._tensors.info(f"{module}.{part}")
        if info.dtype not in dtypes or len(info.shape) != 2 or 0 in info.shape:
            raise self._error(
                module, f"expected {part} as {' or '.join(dtypes)} matrix, found {info.dtype} {list(info.shape)}"
            )
        return info.shape[0], info.shape[1]

    def _scales(self, module: str, scheme: _Scheme) -> NDArray[np.float32]:
        name = f"{module}.scales"
        values = self._tensors.read(name)
        wide = bf16_to_float32(values) if self._tensors.info(name).dtype == "BF16" else values.astype(np.float32)
        if not np.isfinite(wide).all() or np.abs(wide).max() > 1e30:
            raise self._error(module, "a scale is not a finite number")
        return np.ascontiguousarray(wide.T)

    def _zeros(self, module: str, scheme: _Scheme) -> NDArray[np.uint8]:
        """Zero points, uint8 [N, G]."""
        stored = _nibbles(self._tensors.read(f"{module}.qzeros"), scheme.bits)
        if self._layout.method == "awq":
            stored = _reordered(stored)
        shifted = (stored.astype(np.uint16) + self._layout.shift) & ((1 << scheme.bits) - 1)
        return np.ascontiguousarray(shifted.astype(np.uint8).T)

    def _codes(self, module: str, scheme: _Scheme) -> NDArray[np.uint8]:
        """Codes, uint8 [N, K]."""
        words = self._tensors.read(f"{module}.qweight")
        if self._layout.method == "awq":
            return np.ascontiguousarray(_reordered(_nibbles(words, 4)).T)
        return _nibbles(np.ascontiguousarray(words.T), scheme.bits)

    def _order(self, module: str, scheme: _Scheme) -> NDArray[np.intp] | None:
        """The group of each column, or None where groups lie one after the other."""
        name = f"{module}.g_idx"
        if self._layout.method == "awq" or name not in self._stored:
            return None
        values = self._tensors.read(name)
        if values.dtype not in (np.int32, np.int64) or values.min() < 0 or values.max() >= scheme.groups:
            raise self._error(module, f"expected g_idx from 0 to {scheme.groups - 1}")
        order: NDArray[np.intp] = values.astype(np.intp)
        return None if np.array_equal(order, np.arange(len(order)) // scheme.group_size) else order

    def _error(self, module: str, problem: str) -> FormatError:
        return FormatError(f"{self.path}: {module}: {problem}")


def _kind(module: str) -> str:
    """What layers call a module: "q_proj" of "model.layers.0.self_attn.q_proj"."""
    return module.rpartition(".")[2]


def _nibbles(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """Int32 [n, m] to the uint8 [n, m*32/bits] in it, lowest bits first: words are little-endian."""
    octets = np.ascontiguousarray(words, dtype="<i4").view(np.uint8)
    if bits == 8:
        return octets
    out = np.empty((*octets.shape, 2), np.uint8)
    np.bitwise_and(octets, 15, out=out[..., 0])
    np.right_shift(octets, 4, out=out[..., 1])
    return out.reshape(len(octets), -1)


def _reordered(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """AWQ's order of outputs undone, in words of eight."""
    return values.reshape(len(values), -1, 8)[:, :, list(_AWQ_ORDER)].reshape(len(values), -1)
