"""Checkpoints: a model's config and tensors under their Hugging Face names, wherever they come from.

One protocol, four sources: a Hugging Face directory, the same with compressed-tensors weights or with those of GPTQ and
AWQ tools, a GGUF file. Knows files, not architectures: whether the engine can run a model is the engine's business.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from freehold.errors import FormatError, UnsupportedError
from freehold.formats.reading import ByteFile, Closing, read_json
from freehold.formats.safetensors import SafetensorsSet
from freehold.formats.tensors import Tensor, TensorInfo, bf16_to_float32, to_float32

GGUF_MAGIC = b"GGUF"
OLD_GPTQ_CONFIG = "quantize_config.json"
"""Where auto-gptq wrote its settings before config.json had a place for them."""


class Checkpoint(Protocol):
    """A model on disk. Opening reads headers only; `load` holds one tensor at a time."""

    @property
    def path(self) -> Path:
        """The directory or file."""

    @property
    def config(self) -> dict[str, Any]:
        """Keys of a Hugging Face config.json; unchecked beyond being a JSON object when they come from one."""

    def names(self) -> list[str]:
        """Hugging Face tensor names; one name for a quantized weight and its scales."""

    def info(self, name: str) -> TensorInfo:
        """Type, shape and size in the file, without reading the tensor's data. FormatError: no such tensor."""

    def load(self, name: str) -> Tensor:
        """The tensor as stored where its grid allows (int4, int8, bfloat16), else float32; 1-D tensors always float32.

        Raises:
            FormatError: no such tensor, or damaged data.
            UnsupportedError: a number format that can't be loaded.
        """

    def float32(self, name: str) -> NDArray[np.float32]:
        """The tensor dequantized; same errors as `load`."""

    def close(self) -> None:
        """Close the files; loading afterwards is an error."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class CheckpointBase(Closing):
    """What the readers share: dequantizing and closing."""

    path: Path
    config: dict[str, Any]

    def load(self, name: str) -> Tensor:
        """See `Checkpoint.load`."""
        raise NotImplementedError

    def float32(self, name: str) -> NDArray[np.float32]:
        """See `Checkpoint.float32`."""
        return to_float32(self.load(name))


class DenseCheckpoint(CheckpointBase):
    """A Hugging Face directory with float weights."""

    def __init__(self, path: Path, config: dict[str, Any], tensors: SafetensorsSet) -> None:
        self.path = path
        self.config = config
        self._tensors = tensors

    def names(self) -> list[str]:
        """See `Checkpoint.names`."""
        return self._tensors.names()

    def info(self, name: str) -> TensorInfo:
        """See `Checkpoint.info`."""
        return self._tensors.info(name)

    def load(self, name: str) -> Tensor:
        """See `Checkpoint.load`."""
        return load_dense(self._tensors, name)

    def close(self) -> None:
        """See `Checkpoint.close`."""
        self._tensors.close()


def load_dense(tensors: SafetensorsSet, name: str) -> NDArray[np.float32] | NDArray[np.uint16]:
    """A float tensor as float32, or as bfloat16 bits where it is stored so and has more than one dimension."""
    info = tensors.info(name)
    if info.dtype not in ("F64", "F32", "F16", "BF16"):
        raise UnsupportedError(f"{tensors.directory}: expected a float tensor {name}, found {info.dtype}")
    values = tensors.read(name)
    if info.dtype == "BF16":
        return values if values.ndim > 1 else bf16_to_float32(values)
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a Hugging Face directory or a .gguf file.

    Raises:
        FormatError: nothing there, or a damaged file.
        UnsupportedError: a well-formed model we can't read: unknown GGUF architecture, tensor type or quantization.
    """
    try:
        return _open(Path(path))
    except OSError as error:
        raise FormatError(f"can't open {path}: {error.strerror or error}") from None


def _open(path: Path) -> Checkpoint:
    if path.is_dir():
        return _open_directory(path)
    if not path.exists():
        raise FormatError(f"no model at {path}", hint="give a Hugging Face directory or a .gguf file")
    if path.suffix == ".gguf" or _magic(path) == GGUF_MAGIC:
        from freehold.formats.gguf_checkpoint import GGUFCheckpoint

        return GGUFCheckpoint(path)
    raise FormatError(
        f"expected a model directory or a .gguf file, found {path}",
        hint="for a .safetensors file, give the directory that holds it and its config.json",
    )


def _open_directory(path: Path) -> Checkpoint:
    config_path = path / "config.json"
    if not config_path.exists():
        found = sorted(entry.name for entry in path.glob("*.gguf"))
        hint = f"to open a file in it, name it: {path / found[0]}" if found else None
        raise FormatError(f"expected config.json in {path}, found none", hint=hint)
    config = read_json(config_path, "config")
    quantization = config.get("quantization_config")
    if quantization is None and (path / OLD_GPTQ_CONFIG).is_file():
        quantization = {**read_json(path / OLD_GPTQ_CONFIG, "quantization config"), "quant_method": "gptq"}
    tensors = SafetensorsSet(path)
    try:
        if quantization is None:
            return DenseCheckpoint(path, config, tensors)
        if isinstance(quantization, dict) and quantization.get("quant_method") in ("gptq", "awq"):
            from freehold.formats.gptq_awq import PackedCheckpoint

            return PackedCheckpoint(path, config, tensors, quantization)
        from freehold.formats.compressed_tensors import CompressedCheckpoint

        return CompressedCheckpoint(path, config, tensors)
    except BaseException:
        tensors.close()
        raise


def _magic(path: Path) -> bytes:
    with ByteFile(path) as file:
        return file.read(0, min(4, file.size)).tobytes()
