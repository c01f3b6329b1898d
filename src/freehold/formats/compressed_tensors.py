"""Checkpoints in the compressed-tensors format: packed weights of 2 to 8 bits under their logical names.

Reads "pack-quantized" (2 to 8 bits, per group, channel or tensor, symmetric or not) and "int-quantized" (int8), and
layers left dense. Layout as in the compressed-tensors package 0.20, compressors/pack_quantized: values are stored plus
2^(bits-1), without gaps, the first in the lowest bits; zero points likewise, packed down the rows. What is quantized is
read off the tensors that are there, so the config's layer patterns need no matching. Knows no layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.errors import FormatError, UnsupportedError
from freehold.formats.checkpoint import CheckpointBase, load_dense
from freehold.formats.safetensors import SafetensorsSet
from freehold.formats.tensors import BITS, QuantizedTensor, Tensor, TensorInfo, bf16_to_float32, in_columns

FORMATS = ("pack-quantized", "int-quantized", "mixed-precision", "dense")
GROUP_SIZES = (32, 64, 128)

_COMPANIONS = ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
_ACTIVATIONS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale", "v_scale")
"""Static activation and cache scales: not weights, and not used, as activations are quantized on the fly."""


@dataclass(frozen=True, slots=True)
class _Scheme:
    """How one quantized weight is stored."""

    shape: tuple[int, int]
    bits: int
    group_size: int
    packed: bool
    asymmetric: bool

    @property
    def groups(self) -> int:
        return -(-self.shape[1] // self.group_size)


class CompressedCheckpoint(CheckpointBase):
    """A Hugging Face directory whose config.json has a compressed-tensors `quantization_config`.

    Raises:
        FormatError: tensors that don't fit together or the config.
        UnsupportedError: another quantization method, format, bit width or group size.
    """

    def __init__(self, path: Path, config: dict[str, Any], tensors: SafetensorsSet) -> None:
        self.path = path
        self.config = config
        self._tensors = tensors
        self._stored = set(tensors.names())
        self._schemes: dict[str, _Scheme] = {}
        self._weights = _weight_arguments(path, config["quantization_config"])
        self._names = [name for name in map(self._logical, tensors.names()) if name is not None]

    def names(self) -> list[str]:
        """See `Checkpoint.names`."""
        return list(self._names)

    def info(self, name: str) -> TensorInfo:
        """See `Checkpoint.info`; "int4", "int8" ... for a quantized weight. Reads the 16 bytes of `weight_shape`."""
        if not self._quantized(name):
            return self._tensors.info(name)
        scheme = self._scheme(name)
        parts = [f"{name}_packed" if scheme.packed else name, *(_companion(name, part) for part in _COMPANIONS)]
        nbytes = sum(self._tensors.info(part).nbytes for part in parts if part in self._stored)
        return TensorInfo(name, f"int{scheme.bits}", scheme.shape, nbytes)

    def load(self, name: str) -> Tensor:
        """See `Checkpoint.load`."""
        if not self._quantized(name):
            return load_dense(self._tensors, name)
        scheme = self._scheme(name)
        scales = self._scales(name, scheme)
        offsets = None
        if scheme.asymmetric:
            with np.errstate(over="ignore"):
                offsets = -self._zero_points(name, scheme).astype(np.float32) * scales
        if not np.isfinite(scales).all() or (offsets is not None and not np.isfinite(offsets).all()):
            raise self._error(name, "a scale is not a finite number")
        order = self._order(name, scheme)
        if order is not None:  # groups are scattered over the columns, which no grid here can say
            return in_columns(self._codes(name, scheme), scales, offsets, scheme.bits, order)
        return QuantizedTensor(self._codes(name, scheme), scales, offsets, scheme.bits, scheme.group_size)

    def close(self) -> None:
        """See `Checkpoint.close`."""
        self._tensors.close()

    def _logical(self, stored: str) -> str | None:
        """The name a stored tensor stands for, or None for one that belongs to another."""
        if stored.endswith(".weight_packed"):
            return stored.removesuffix("_packed")
        base, _, last = stored.rpartition(".")
        if last in _ACTIVATIONS:
            return None
        owners = (f"{base}.weight", f"{base}.weight_packed")
        # An output layer that shares the embedding's int8 codes has scales of its own and no weight.
        tied = base.split(".")[-1] == "lm_head" and bool(self.config.get("tie_word_embeddings"))
        return None if last in _COMPANIONS and (tied or any(owner in self._stored for owner in owners)) else stored

    def _quantized(self, name: str) -> bool:
        if f"{name}_packed" in self._stored:
            return True
        return self._tensors.info(name).dtype == "I8" and _companion(name, "weight_scale") in self._stored

    def _scheme(self, name: str) -> _Scheme:
        if name not in self._schemes:
            self._schemes[name] = self._packed_scheme(name) if f"{name}_packed" in self._stored else self._int8(name)
        return self._schemes[name]

    def _packed_scheme(self, name: str) -> _Scheme:
        packed = self._tensors.info(f"{name}_packed")
        stored_shape = self._tensors.info(_companion(name, "weight_shape"))
        if packed.dtype != "I32" or len(packed.shape) != 2:
            raise self._error(name, f"expected packed int32 [N, words], found {packed.dtype} {list(packed.shape)}")
        if stored_shape.dtype not in ("I32", "I64") or stored_shape.shape != (2,):
            raise self._error(name, f"expected weight_shape of two integers, found {list(stored_shape.shape)}")
        rows, columns = (int(size) for size in self._tensors.read(stored_shape.name))
        for bits in sorted({weights.bits for weights in self._weights}):
            if rows > 0 and columns > 0 and packed.shape == (rows, -(-columns * bits // 32)):
                size = self._group_size(name, (rows, columns), bits)
                return _Scheme((rows, columns), bits, size, True, self._asymmetric(name, bits))
        raise self._error(name, f"{list(packed.shape)} words don't hold [{rows}, {columns}] in any width of the config")

    def _int8(self, name: str) -> _Scheme:
        shape = self._tensors.info(name).shape
        if len(shape) != 2 or 0 in shape:
            raise self._error(name, f"expected int8 [N, K], found {list(shape)}")
        rows, columns = shape
        # Narrower integers are stored as int8 too; as values they are int8.
        size = self._group_size(name, (rows, columns), None)
        return _Scheme((rows, columns), 8, size, False, self._asymmetric(name, None))

    def _asymmetric(self, name: str, bits: int | None) -> bool:
        """Whether zero points are there and count: symmetric layers may carry some that are all zero."""
        symmetric = [weights.symmetric for weights in self._weights if bits in (None, weights.bits)]
        present = _companion(name, "weight_zero_point") in self._stored
        if not present and symmetric and not any(symmetric):
            raise self._error(name, "expected zero points, as the config says asymmetric; found none")
        return present and not all(symmetric)

    def _group_size(self, name: str, shape: tuple[int, int], bits: int | None) -> int:
        """The size the config gives for this width that explains the number of scales."""
        rows, columns = shape
        scale = self._tensors.info(_companion(name, "weight_scale")).shape
        if scale in ((1,), ()) or scale == (rows, 1):
            return columns
        for weights in self._weights:
            size = weights.group_size
            if size is not None and bits in (None, weights.bits) and scale == (rows, -(-columns // size)):
                return size
        raise self._error(name, f"scales {list(scale)} for weights {list(shape)} fit no group size of the config")

    def _scales(self, name: str, scheme: _Scheme) -> NDArray[np.float32]:
        stored = _companion(name, "weight_scale")
        dtype = self._tensors.info(stored).dtype
        values = self._tensors.read(stored)
        if dtype == "BF16":
            values = bf16_to_float32(values)
        elif dtype not in ("F16", "F32"):
            raise self._error(name, f"expected float scales, found {dtype}")
        return np.array(np.broadcast_to(values, (scheme.shape[0], scheme.groups)), np.float32)

    def _order(self, name: str, scheme: _Scheme) -> NDArray[np.intp] | None:
        """The group of each column (`weight_g_idx`, of act-order), or None where groups lie one after the other."""
        stored = _companion(name, "weight_g_idx")
        if stored not in self._stored:
            return None
        info = self._tensors.info(stored)
        if info.dtype not in ("I32", "I64") or info.shape != (scheme.shape[1],):
            raise self._error(name, f"expected a group for each column, found {info.dtype} {list(info.shape)}")
        order: NDArray[np.intp] = self._tensors.read(stored).astype(np.intp)
        if (order == -1).all():  # written, but never set
            return None
        if order.min() < 0 or order.max() >= scheme.groups:
            raise self._error(name, f"expected groups from 0 to {scheme.groups - 1} for the columns")
        return None if np.array_equal(order, np.arange(len(order)) // scheme.group_size) else order

    def _zero_points(self, name: str, scheme: _Scheme) -> NDArray[np.int16]:
        """Counted from zero as the codes are: int16 [N, groups]."""
        stored = _companion(name, "weight_zero_point")
        info = self._tensors.info(stored)
        shape = (scheme.shape[0], scheme.groups)
        if info.dtype == "I8" and info.shape in (shape, (1,), ()):  # also in packed files of older versions
            centred = self._tensors.read(stored).astype(np.int16) + np.int16(1 << (scheme.bits - 1))
            return np.array(np.broadcast_to(centred, shape))
        words = (-(-shape[0] * scheme.bits // 32), shape[1])
        if scheme.packed and info.dtype == "I32" and info.shape == words:
            columns = _unpack(np.ascontiguousarray(self._tensors.read(stored).T), scheme.bits, shape[0])
            return columns.T.astype(np.int16)
        raise self._error(name, f"expected zero points {list(shape)}, found {info.dtype} {list(info.shape)}")

    def _codes(self, name: str, scheme: _Scheme) -> NDArray[np.uint8]:
        if not scheme.packed:
            return _unsigned(self._tensors.read(name))
        return _unpack(self._tensors.read(f"{name}_packed"), scheme.bits, scheme.shape[1])

    def _error(self, name: str, problem: str) -> FormatError:
        return FormatError(f"{self.path}: {name}: {problem}")


@dataclass(frozen=True, slots=True)
class _Weights:
    bits: int
    group_size: int | None
    symmetric: bool


def _weight_arguments(path: Path, quantization: Any) -> list[_Weights]:
    """Width and group size of each of the config's groups of layers."""
    where = f"{path}: quantization_config"
    if not isinstance(quantization, dict):
        raise FormatError(f"{where}: expected an object, found {type(quantization).__name__}")
    method = quantization.get("quant_method")
    if method != "compressed-tensors":
        hint = "use the original model, or one in compressed-tensors, GPTQ, AWQ or GGUF format"
        raise UnsupportedError(f"{where}: expected compressed-tensors, found {method!r:.100}", hint=hint)
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise FormatError(f"{where}: expected config_groups to map names to objects")
    for layout in [quantization.get("format"), *(group.get("format") for group in groups.values())]:
        if layout is not None and layout not in FORMATS:
            raise UnsupportedError(f"{where}: unknown format {layout!r:.100}", hint="known: " + ", ".join(FORMATS))
    return [_weights(where, group["weights"]) for group in groups.values() if group.get("weights") is not None]


def _weights(where: str, weights: Any) -> _Weights:
    if not isinstance(weights, dict):
        raise FormatError(f"{where}: expected weights to be an object, found {type(weights).__name__}")
    kind, bits, size = weights.get("type", "int"), weights.get("num_bits", 8), weights.get("group_size")
    if kind != "int" or type(bits) is not int or bits not in BITS:
        raise UnsupportedError(f"{where}: expected int weights of 2 to 8 bits, found {kind!r:.40} of {bits!r:.40}")
    symmetric = weights.get("symmetric", True) is not False
    if size in (None, -1):  # one scale for a row or the whole tensor
        return _Weights(bits, None, symmetric)
    if type(size) is not int or size not in GROUP_SIZES:
        known = ", ".join(map(str, GROUP_SIZES))
        raise UnsupportedError(f"{where}: unknown group size {size!r:.40}", hint=f"known: {known}, or one for a row")
    return _Weights(bits, size, symmetric)


def _companion(name: str, part: str) -> str:
    return name.removesuffix("weight") + part


def _unsigned(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Int8 to the same value plus 128: the top bit turns."""
    return values.view(np.uint8) ^ np.uint8(128)


def _unpack(words: NDArray[np.int32], bits: int, columns: int) -> NDArray[np.uint8]:
    """Int32 [n, words] to uint8 [n, columns]: little-endian words, so their bytes are in order of value."""
    packed = words.view(np.uint8)
    if bits == 8:
        return np.ascontiguousarray(packed[:, :columns])
    if bits != 4:
        return _unpack_eights(packed, bits, columns)
    out = np.empty((len(packed), packed.shape[1], 2), np.uint8)
    np.bitwise_and(packed, 15, out=out[:, :, 0])
    np.right_shift(packed, 4, out=out[:, :, 1])
    return np.ascontiguousarray(out.reshape(len(packed), -1)[:, :columns])


def _unpack_eights(packed: NDArray[np.uint8], bits: int, columns: int) -> NDArray[np.uint8]:
    """Eight codes fill so many bytes as they have bits; older versions of compressed-tensors left gaps, and are refused."""
    rows, count = len(packed), -(-columns // 8)
    missing = count * bits - packed.shape[1]
    if missing > 0:
        packed = np.concatenate([packed, np.zeros((rows, missing), np.uint8)], axis=1)
    joined = np.zeros((rows, count, 8), np.uint8)
    joined[:, :, :bits] = packed[:, : count * bits].reshape(rows, count, bits)
    words = joined.view("<u8")[:, :, 0]
    out = np.empty((rows, count, 8), np.uint8)
    for place in range(8):
        out[:, :, place] = (words >> np.uint64(place * bits)) & np.uint64((1 << bits) - 1)
    return np.ascontiguousarray(out.reshape(rows, -1)[:, :columns])
