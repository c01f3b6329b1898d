"""A GGUF file as a Hugging Face checkpoint: config keys, tensor names and row order translated back.

Knows how llama.cpp's converter (convert_hf_to_gguf.py and gguf-py's tensor_mapping.py) renames things for the Llama,
Qwen2, Qwen3 and Gemma 3 families; does not know what the tensors do.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from freehold.errors import FormatError, UnsupportedError
from freehold.formats.checkpoint import CheckpointBase
from freehold.formats.gguf import GGUFFile
from freehold.formats.tensors import QuantizedTensor, Tensor, TensorInfo, to_float32

MAX_LAYERS = 1024
MAX_WIDTH = 1 << 24
"""Bound for heads, widths and context: far above any model, far below what overflows arithmetic on shapes."""
FLOAT_MIN, FLOAT_MAX = 1e-20, 1e20


@dataclass(frozen=True, slots=True)
class _Family:
    model_type: str
    class_name: str
    interleaved: bool = False
    """Rows of q and k are stored in llama.cpp's order for rotary pairs (2i, 2i+1) and must be put back."""
    gemma: bool = False
    """Norms stand behind attention and MLP too, and are stored with the 1 that the model adds to their weights."""


FAMILIES = {
    "llama": _Family("llama", "LlamaForCausalLM", interleaved=True),
    "qwen2": _Family("qwen2", "Qwen2ForCausalLM"),
    "qwen3": _Family("qwen3", "Qwen3ForCausalLM"),
    "gemma3": _Family("gemma3_text", "Gemma3ForCausalLM", gemma=True),
}

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_LAYER = _LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LAYER_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.([a-z_]+)\.(weight|bias)", re.ASCII)
_ROPE_FACTORS = "rope_freqs.weight"
"""Llama 3's rope scaling, written out per frequency; it returns to the config and is no tensor of the model."""


def architecture_of(model_type: str) -> str:
    """llama.cpp's name of a family.

    Raises:
        UnsupportedError: it has none here.
    """
    found = next((name for name, family in FAMILIES.items() if family.model_type == model_type), None)
    if found is None:
        known = ", ".join(family.model_type for family in FAMILIES.values())
        raise UnsupportedError(f"can't write {model_type[:60]!r} as GGUF", hint=f"known: {known}")
    return found


def norm_offset(architecture: str, name: str) -> float:
    """What a file's stored tensor has more than the model's own, of a Hugging Face name (LlamaModel's and Gemma's
    `modify_tensors` in the converter)."""
    return 1.0 if FAMILIES[architecture].gemma and name.endswith("norm.weight") else 0.0


def stored_name(architecture: str, name: str) -> str:
    """llama.cpp's name of a Hugging Face tensor.

    Raises:
        UnsupportedError: it has none here.
    """
    back = {hugging: stored for stored, hugging in _TOP.items()}
    if name in back:
        return back[name]
    match = re.fullmatch(r"model\.layers\.(\d+)\.([a-z_.]+)\.(weight|bias)", name, re.ASCII)
    layer = _GEMMA_LAYER if FAMILIES[architecture].gemma else _LAYER
    stored = {hugging: stored for stored, hugging in layer.items()}.get(match[2]) if match else None
    if match is None or stored is None:
        raise UnsupportedError(f"GGUF has no name for the tensor {name[:100]}")
    return f"blk.{match[1]}.{stored}.{match[3]}"


class GGUFCheckpoint(CheckpointBase):
    """A .gguf file under Hugging Face names.

    Raises:
        FormatError: damaged, or metadata that is missing or absurd.
        UnsupportedError: an architecture, tensor or setting we can't translate.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GGUFFile(path)
        try:
            self._metadata = _Metadata(path, self._file.metadata)
            self._names = self._translate_names()
            self.config = self._translate_config()
        except BaseException:
            self._file.close()
            raise

    @property
    def metadata(self) -> dict[str, Any]:
        """The file's own metadata, untranslated."""
        return self._file.metadata

    def names(self) -> list[str]:
        """See `Checkpoint.names`."""
        return list(self._names)

    def info(self, name: str) -> TensorInfo:
        """See `Checkpoint.info`; `dtype` is ggml's name."""
        info = self._file.info(self._stored(name))
        return TensorInfo(name, info.dtype, info.shape, info.nbytes)

    def load(self, name: str) -> Tensor:
        """See `Checkpoint.load`."""
        tensor = self._file.load(self._stored(name))
        offset = norm_offset(self._metadata.architecture, name)
        if offset and isinstance(tensor, np.ndarray):
            return to_float32(tensor) - np.float32(offset)
        heads = self._interleaved_heads(name)
        return tensor if heads is None else _take_rows(tensor, self._row_order(name, _rows(tensor), heads))

    def close(self) -> None:
        """See `Checkpoint.close`."""
        self._file.close()

    def _stored(self, name: str) -> str:
        try:
            return self._names[name]
        except KeyError:
            raise FormatError(f"no tensor {name} in {self.path}") from None

    def _interleaved_heads(self, name: str) -> int | None:
        if not self._metadata.family.interleaved:
            return None
        if ".self_attn.q_proj." in name:
            return int(self.config["num_attention_heads"])
        if ".self_attn.k_proj." in name:
            return int(self.config["num_key_value_heads"])
        return None

    def _row_order(self, name: str, rows: int, heads: int) -> NDArray[np.intp]:
        """Undo the converter's permutation: per head, stored row 2i+h is row h*dim/2 + i (LlamaModel.permute)."""
        if rows % (2 * heads):
            raise FormatError(f"{self.path}: expected {name} to have an even number of rows per head, found {rows}")
        stored = np.arange(rows).reshape(heads, rows // heads // 2, 2)
        return stored.swapaxes(1, 2).reshape(rows)

    def _translate_names(self) -> dict[str, str]:
        layers = self._metadata.natural("block_count", MAX_LAYERS)
        names: dict[str, str] = {}
        layer = _GEMMA_LAYER if self._metadata.family.gemma else _LAYER
        for stored in self._file.tensors:
            if stored in _TOP:
                names[_TOP[stored]] = stored
                continue
            match = _LAYER_NAME.fullmatch(stored)
            if match and match[2] in layer:
                if int(match[1]) >= layers:
                    raise FormatError(f"{self.path}: tensor {stored!r} in a model of {layers} layers")
                names[f"model.layers.{match[1]}.{layer[match[2]]}.{match[3]}"] = stored
            elif stored != _ROPE_FACTORS:
                raise UnsupportedError(
                    f"{self.path}: tensor {stored!r} is not known for architecture {self._metadata.architecture}"
                )
        for needed in ("token_embd.weight", "output_norm.weight"):
            if needed not in self._file.tensors:
                raise FormatError(f"{self.path}: expected a tensor {needed}, found none")
        return names

    def _translate_config(self) -> dict[str, Any]:
        meta = self._metadata
        hidden = meta.natural("embedding_length", MAX_WIDTH)
        heads = meta.natural("attention.head_count", MAX_WIDTH)
        head_dim = meta.natural("attention.key_length", MAX_WIDTH, hidden // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if (found := meta.natural(key, MAX_WIDTH, head_dim)) != head_dim:
                raise UnsupportedError(f"{self.path}: expected {key} to be the head size {head_dim}, found {found}")
        if meta.optional("expert_count", 0) != 0:
            raise UnsupportedError(f"{self.path}: mixture-of-experts models can't be read from GGUF")
        embedding = self._file.tensors["token_embd.weight"].shape
        if len(embedding) != 2 or embedding[1] != hidden:
            raise FormatError(f"{self.path}: expected token_embd.weight [tokens, {hidden}], found {list(embedding)}")
        theta = meta.positive("rope.freq_base", 10000.0)
        config = {
            "architectures": [meta.family.class_name],
            "model_type": meta.family.model_type,
            "hidden_size": hidden,
            "intermediate_size": meta.natural("feed_forward_length", MAX_WIDTH),
            "num_hidden_layers": meta.natural("block_count", MAX_LAYERS),
            "num_attention_heads": heads,
            "num_key_value_heads": meta.natural("attention.head_count_kv", MAX_WIDTH, heads),
            "head_dim": head_dim,
            **({} if meta.family.gemma else {"hidden_act": "silu"}),
            "rms_norm_eps": meta.positive("attention.layer_norm_rms_epsilon"),
            "rope_theta": theta,
            "rope_scaling": self._rope_scaling(theta, head_dim),
            "max_position_embeddings": meta.natural("context_length", MAX_WIDTH),
            "vocab_size": embedding[0],
            "tie_word_embeddings": "output.weight" not in self._file.tensors,
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in self._names,
        }
        if meta.family.gemma:
            config |= self._gemma_config(hidden // heads, head_dim)
        for key in ("bos", "eos"):
            token = self._file.metadata.get(f"tokenizer.ggml.{key}_token_id")
            if type(token) is int and 0 <= token < embedding[0]:
                config[f"{key}_token_id"] = token
        return config

    def _gemma_config(self, width: int, head_dim: int) -> dict[str, Any]:
        """What Gemma 3 has besides; llama.cpp knows the pattern and the 27B model's scale by heart (llama-model.cpp)."""
        meta = self._metadata
        layers = meta.natural("block_count", MAX_LAYERS)
        return {
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": meta.natural("attention.sliding_window", MAX_WIDTH),
            "sliding_window_pattern": meta.natural("attention.sliding_window_pattern", MAX_LAYERS, 6),
            "rope_local_base_freq": meta.positive("rope.freq_base_swa", 10000.0),
            "query_pre_attn_scalar": width if layers == 62 else head_dim,
        }

    def _rope_scaling(self, theta: float, head_dim: int) -> dict[str, Any] | None:
        meta = self._metadata
        if _ROPE_FACTORS in self._file.tensors:
            return self._llama3_scaling(theta, head_dim)
        if "rope.scale_linear" in meta:  # the key before rope.scaling.* existed
            return {"rope_type": "linear", "factor": meta.positive("rope.scale_linear")}
        kind = meta.optional("rope.scaling.type", "none")
        if kind == "none":
            return None
        if kind not in ("linear", "yarn"):
            raise UnsupportedError(f"{self.path}: unknown rope scaling {kind!r:.100}", hint="known: none, linear, yarn")
        scaling: dict[str, Any] = {"rope_type": kind, "factor": meta.positive("rope.scaling.factor")}
        if kind == "yarn":
            length = meta.natural("rope.scaling.original_context_length", MAX_WIDTH)
            scaling["original_max_position_embeddings"] = length
        return scaling

    def _llama3_scaling(self, theta: float, head_dim: int) -> dict[str, Any]:
        """The config behind Llama 3's per-frequency factors.

        The converter computes them from the config and drops it. Every published Llama 3 has low_freq_factor 1,
        high_freq_factor 4 and an original context of 8192; the factor is the largest of them. Accepted only if these
        give the stored factors again.
        """
        stored = to_float32(self._file.load(_ROPE_FACTORS)).reshape(-1)
        factor = float(stored.max())
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        if 1 <= factor < MAX_WIDTH and len(stored) == head_dim // 2:
            expected = _llama3_factors(theta, head_dim, factor)
            if np.allclose(stored, expected, rtol=1e-4, atol=0):
                return scaling
        raise UnsupportedError(f"{self.path}: the factors in {_ROPE_FACTORS} are not those of a Llama 3")


class _Metadata:
    """Typed access to the `<architecture>.*` keys, every value checked for type and range."""

    def __init__(self, path: Path, table: dict[str, Any]) -> None:
        self._path = path
        self._table = table
        architecture = table.get("general.architecture")
        if not isinstance(architecture, str):
            raise FormatError(f"{path}: expected general.architecture in the metadata, found {architecture!r:.100}")
        if architecture not in FAMILIES:
            raise UnsupportedError(
                f"{path}: unknown architecture {architecture[:100]!r}", hint="known: " + ", ".join(FAMILIES)
            )
        self.architecture = architecture
        self.family = FAMILIES[architecture]

    def __contains__(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self._table

    def optional(self, key: str, default: Any) -> Any:
        """The value as it is."""
        return self._table.get(f"{self.architecture}.{key}", default)

    def natural(self, key: str, limit: int, default: int | None = None) -> int:
        """An integer from 1 to `limit`; a list of equal ones (one for each layer) counts as one."""
        value = self.optional(key, default)
        if isinstance(value, list) and value:
            if any(item != value[0] for item in value):
                raise UnsupportedError(f"{self._path}: {self.architecture}.{key} differs from layer to layer")
            value = value[0]
        if type(value) is not int or not 1 <= value <= limit:
            self._fail(key, f"an integer from 1 to {limit}", value)
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """A number above zero that float32 can hold, as its shortest decimal: 1e-05, not 9.999999747378752e-06."""
        value = self.optional(key, default)
        if type(value) not in (int, float) or not FLOAT_MIN <= value <= FLOAT_MAX:
            self._fail(key, f"a number from {FLOAT_MIN} to {FLOAT_MAX}", value)
        return float(str(np.float32(value)))

    def _fail(self, key: str, expected: str, value: Any) -> NoReturn:
        found = "none" if value is None else f"{value!r:.100}"
        raise FormatError(f"{self._path}: expected {self.architecture}.{key} to be {expected}, found {found}")


def _llama3_factors(theta: float, head_dim: int, factor: float) -> NDArray[np.float64]:
    """What divides each rotary frequency (transformers, modeling_rope_utils.py, _compute_llama3_parameters)."""
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high, length = 1.0, 4.0, 8192.0
    smooth = np.clip((length / wavelength - low) / (high - low), 0.0, 1.0)
    factors: NDArray[np.float64] = 1 / ((1 - smooth) / factor + smooth)
    return factors


def _rows(tensor: Tensor) -> int:
    return len(tensor.codes) if isinstance(tensor, QuantizedTensor) else len(tensor)


def _take_rows(tensor: Tensor, order: NDArray[np.intp]) -> Tensor:
    if not isinstance(tensor, QuantizedTensor):
        return tensor[order]
    offsets = None if tensor.offsets is None else tensor.offsets[order]
    return QuantizedTensor(tensor.codes[order], tensor.scales[order], offsets, tensor.bits, tensor.group_size)
