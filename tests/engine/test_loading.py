"""Loading: tensors become weights as stored, shared where tied, and refused where they don't fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.engine import tiny

from freehold.engine.loading import load_weights, to_bfloat16
from freehold.engine.models import program_for
from freehold.errors import FormatError, UnsupportedError, UsageError
from freehold.formats.checkpoint import CheckpointBase, open_checkpoint
from freehold.formats.tensors import QuantizedTensor, Tensor, TensorInfo
from freehold.kernels.matrix import FloatMatrix, Matrix, QuantizedMatrix


class Memory(CheckpointBase):
    """A checkpoint in memory, whose matrices may be quantized."""

    path = Path("memory")

    def __init__(
        self, config: dict[str, Any], convert: Callable[[str, np.ndarray], Tensor] = lambda name, t: t
    ) -> None:
        self.config = config
        self._tensors = {name: convert(name, t) for name, t in tiny.tensors(program_for(config)).items()}

    def names(self) -> list[str]:
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        tensor = self._tensors[name]
        if isinstance(tensor, QuantizedTensor):
            rows, columns = tensor.codes.shape
            return TensorInfo(name, "int4", (rows, columns), rows * columns * tensor.bits // 8 + tensor.scales.size * 2)
        return TensorInfo(name, "F32", tensor.shape, tensor.nbytes)

    def load(self, name: str) -> Tensor:
        return self._tensors[name]

    def close(self) -> None:
        self._tensors.clear()


def quantized(group: int) -> Callable[[str, np.ndarray], Tensor]:
    def convert(name: str, tensor: np.ndarray) -> Tensor:
        if tensor.ndim == 1 or tensor.shape[1] % group:
            return tensor
        made = tiny.quantize(tensor, 4, 32)
        return QuantizedTensor(made.codes, np.repeat(made.scales, 32 // group, axis=1), None, 4, group)

    return convert


def test_tied_embeddings_are_one_object_and_count_once() -> None:
    for tied in (True, False):
        config = tiny.config(tie_word_embeddings=tied)
        loaded = load_weights(Memory(config), program_for(config))
        assert (loaded.weights["embed"] is loaded.weights["lm_head"]) is tied
        sizes = [tensor.size for tensor in tiny.tensors(program_for(config)).values()]
        assert loaded.parameters == sum(sizes)
        assert loaded.bits_per_weight == 32.0


def test_fused_projections_are_stacked_in_order() -> None:
    config = tiny.config(architectures=["Qwen2ForCausalLM"])
    values = tiny.tensors(program_for(config))
    loaded = load_weights(Memory(config), program_for(config))
    fused, bias = loaded.weights["layers.1.qkv"], loaded.weights["layers.1.qkv.bias"]
    assert isinstance(fused, Matrix)
    names = [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"]
    np.testing.assert_array_equal(fused.float32(), np.concatenate([values[f"{name}.weight"] for name in names]))
    np.testing.assert_array_equal(bias, np.concatenate([values[f"{name}.bias"] for name in names]))


def test_quantized_tensors_stay_as_stored_and_size_says_so() -> None:
    config = tiny.config()
    loaded = load_weights(Memory(config, quantized(32)), program_for(config))
    matrices = [weight for weight in loaded.weights.values() if isinstance(weight, Matrix)]
    assert all(isinstance(part, QuantizedMatrix) and part.group == 32 for matrix in matrices for part in matrix.parts)
    assert 4.5 < loaded.bits_per_weight < 4.8
    assert loaded.notes == []


def test_a_group_the_kernels_lack_runs_in_float32_with_a_reason() -> None:
    config = tiny.config()
    loaded = load_weights(Memory(config, quantized(16)), program_for(config))
    down = loaded.weights["layers.0.down"]
    assert isinstance(down, Matrix)
    assert isinstance(down.parts[0], FloatMatrix)
    assert len(loaded.notes) == 1
    assert "float32" in loaded.notes[0]
    assert "not 16" in loaded.notes[0]


@pytest.mark.parametrize(("precision", "dtype"), [("f32", np.float32), ("bf16", np.uint16)])
def test_a_reference_run_dequantizes_every_matrix(precision: Any, dtype: type) -> None:
    config = tiny.config()
    memory, program = Memory(config, quantized(32)), program_for(config)
    exact = load_weights(memory, program).weights
    for name, weight in load_weights(memory, program, precision).weights.items():
        if isinstance(weight, Matrix):
            assert all(isinstance(part, FloatMatrix) and part.data.dtype == dtype for part in weight.parts)
            stored = exact[name]
            assert isinstance(stored, Matrix)
            tolerance = 0 if precision == "f32" else 2**-8
            np.testing.assert_allclose(weight.float32(), stored.float32(), rtol=tolerance, atol=0)


def test_rounding_to_bfloat16_is_half_to_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, np.inf, 0], np.float32)
    widened = (to_bfloat16(values).astype(np.uint32) << 16).view(np.float32)
    expected = [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -1.0, np.inf, 0]
    np.testing.assert_array_equal(widened, np.array(expected, np.float32))


def test_an_unknown_precision_is_refused() -> None:
    config = tiny.config()
    with pytest.raises(UsageError, match="precision must be one of stored, f32, bf16, got 'f64'"):
        load_weights(Memory(config), program_for(config), "f64")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("model.norm.weight", lambda t: None, "model.norm.weight is missing"),
        ("model.norm.weight", lambda t: t[:-1], r"must have shape \(64,\), found \(63,\)"),
        ("model.embed_tokens.weight", lambda t: t[:-1], r"must have shape \(97, 64\), found \(96, 64\)"),
        (
            "model.layers.0.self_attn.k_proj.weight",
            lambda t: t[:-1],
            r"k_proj.*must have shape \(128, 64\), found \(127",
        ),
        ("model.layers.1.mlp.up_proj.weight", lambda t: t[:, :-1], "same columns"),
        ("model.layers.1.mlp.down_proj.weight", lambda t: t.reshape(-1), "two dimensions"),
        ("model.layers.1.input_layernorm.weight", lambda t: t[None], "one dimension"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_its_name(
    tmp_path: Path, name: str, change: Callable[[Any], Any], words: str
) -> None:
    model = tiny.write(tmp_path)
    values = tiny.tensors(program_for(tiny.config()))
    changed = change(values.pop(name))
    if changed is not None:
        values[name] = np.ascontiguousarray(changed)
    save_file(values, model / "model.safetensors")
    with open_checkpoint(model) as checkpoint, pytest.raises(FormatError, match=words):
        load_weights(checkpoint, program_for(checkpoint.config))


def test_layer_tensors_the_architecture_does_not_use_are_refused_rather_than_ignored(tmp_path: Path) -> None:
    model = tiny.write(tmp_path)
    values = tiny.tensors(program_for(tiny.config()))
    values["model.layers.0.self_attn.q_proj.bias"] = np.ones(64, np.float32)
    save_file(values, model / "model.safetensors")
    with open_checkpoint(model) as checkpoint, pytest.raises(UnsupportedError, match=r"q_proj\.bias has no place"):
        load_weights(checkpoint, program_for(checkpoint.config))


def test_tensors_that_follow_from_others_are_let_be(tmp_path: Path) -> None:
    model = tiny.write(tmp_path)
    values = tiny.tensors(program_for(tiny.config()))
    values["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    values["lm_head.weight"] = values["model.embed_tokens.weight"].copy()
    save_file(values, model / "model.safetensors")
    with open_checkpoint(model) as checkpoint:
        load_weights(checkpoint, program_for(checkpoint.config))
