"""GGUF files under Hugging Face names, against what transformers loads from the same files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from freehold.errors import FormatError, UnsupportedError
from freehold.formats import open_checkpoint
from freehold.formats.checkpoint import Checkpoint
from freehold.formats.gguf import GGUFFile
from freehold.formats.tensors import QuantizedTensor
from tests.formats.building import ARRAY, F32, MINIMAL, PARTS, STRING, U32, Part, array, changed, f32, gguf, value

VECTORS = Path(__file__).parents[1] / "vectors" / "gguf"
FAMILIES = ["tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-gemma3"]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def checkpoint(family: str) -> Iterator[Checkpoint]:
    with open_checkpoint(VECTORS / f"{family}.gguf") as opened:
        yield opened


def opened_with(tmp_path: Path, **changes: bytes) -> Checkpoint:
    """A minimal model with some `llama.*` keys changed (dots as __)."""
    metadata = MINIMAL | {f"llama.{key.replace('__', '.')}": typed for key, typed in changes.items()}
    (tmp_path / "model.gguf").write_bytes(gguf(metadata))
    return open_checkpoint(tmp_path / "model.gguf")


def test_every_tensor_equals_what_transformers_loads_from_the_file(family: str, checkpoint: Checkpoint) -> None:
    with np.load(VECTORS / f"{family}.npz") as expected:
        assert set(checkpoint.names()) == set(expected.files)
        for name in checkpoint.names():
            np.testing.assert_array_equal(checkpoint.float32(name), expected[name], err_msg=name)


def test_info_has_the_shape_that_load_gives_and_the_type_of_the_file(checkpoint: Checkpoint) -> None:
    types = set()
    for name in checkpoint.names():
        info = checkpoint.info(name)
        assert (info.name, info.shape) == (name, checkpoint.float32(name).shape)
        types.add(info.dtype)
    assert types == {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}


def test_reordering_the_rows_of_a_llama_keeps_its_grid() -> None:
    with open_checkpoint(VECTORS / "tiny-llama.gguf") as checkpoint:
        symmetric = checkpoint.load("model.layers.0.self_attn.q_proj.weight")
        shifted = checkpoint.load("model.layers.1.self_attn.q_proj.weight")
        assert isinstance(symmetric, QuantizedTensor)
        assert isinstance(shifted, QuantizedTensor)
        assert (symmetric.bits, symmetric.offsets) == (4, None)
        assert shifted.offsets is not None


def test_only_llamas_rows_are_reordered(tmp_path: Path) -> None:
    q = np.arange(64, dtype=np.float32).reshape(8, 8)
    (tmp_path / "llama.gguf").write_bytes(gguf())
    with open_checkpoint(tmp_path / "llama.gguf") as checkpoint:
        # Two heads of four rows: each stored as (0, 2, 1, 3) of the original.
        order = [0, 2, 1, 3, 4, 6, 5, 7]
        np.testing.assert_array_equal(checkpoint.load("model.layers.0.self_attn.q_proj.weight"), q[order])
    qwen = {str(key).replace("llama", "qwen3"): typed for key, typed in MINIMAL.items()}
    (tmp_path / "qwen.gguf").write_bytes(gguf(qwen | {"general.architecture": value(STRING, "qwen3")}))
    with open_checkpoint(tmp_path / "qwen.gguf") as checkpoint:
        np.testing.assert_array_equal(checkpoint.load("model.layers.0.self_attn.q_proj.weight"), q)


def test_metadata_becomes_the_keys_of_a_config() -> None:
    with open_checkpoint(VECTORS / "tiny-qwen3.gguf") as checkpoint:
        assert checkpoint.config == {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0,
            "rope_scaling": None,
            "max_position_embeddings": 512,
            "vocab_size": 24,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


def test_gemmas_windows_and_ropes_are_in_its_config_and_norms_lose_the_1_they_are_stored_with() -> None:
    with open_checkpoint(VECTORS / "tiny-gemma3.gguf") as checkpoint, GGUFFile(checkpoint.path) as file:
        config, name = checkpoint.config, "model.layers.1.self_attn.k_norm.weight"
        stored = file.load("blk.1.attn_k_norm.weight")
        assert isinstance(stored, np.ndarray)
        np.testing.assert_array_equal(checkpoint.float32(name), stored - np.float32(1))
    expected = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 7,
        "sliding_window_pattern": 6,
        "rope_theta": 500000.0,
        "rope_local_base_freq": 10000.0,
        "query_pre_attn_scalar": 16,
        "tie_word_embeddings": True,
    }
    assert {key: config.get(key) for key in expected} == expected
    assert "hidden_act" not in config


def test_a_model_without_an_output_matrix_has_tied_embeddings() -> None:
    with open_checkpoint(VECTORS / "tiny-qwen2.gguf") as checkpoint:
        assert checkpoint.config["tie_word_embeddings"] is True
        assert checkpoint.config["attention_bias"] is True
        assert "model.layers.1.self_attn.k_proj.bias" in checkpoint.names()


def test_what_the_metadata_leaves_out_has_llama_cpps_defaults(tmp_path: Path) -> None:
    with opened_with(tmp_path) as checkpoint:
        config = checkpoint.config
    assert (config["head_dim"], config["num_key_value_heads"], config["rope_theta"]) == (4, 1, 10000.0)
    assert "eos_token_id" not in config


def test_a_token_id_outside_the_vocabulary_is_left_out(tmp_path: Path) -> None:
    ids = {"tokenizer.ggml.bos_token_id": value(U32, 5), "tokenizer.ggml.eos_token_id": value(U32, 6)}
    (tmp_path / "model.gguf").write_bytes(gguf(MINIMAL | ids))
    with open_checkpoint(tmp_path / "model.gguf") as checkpoint:
        assert checkpoint.config["bos_token_id"] == 5
        assert "eos_token_id" not in checkpoint.config


def test_the_rope_factors_of_llama_3_return_to_the_config_and_are_no_tensor() -> None:
    with open_checkpoint(VECTORS / "tiny-llama3.gguf") as checkpoint:
        assert checkpoint.config["rope_scaling"] == {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        assert not [name for name in checkpoint.names() if "rope" in name]


@pytest.mark.parametrize("factors", [[1, 1, 1, 8], [1, 1], [np.nan] * 4, [0.5] * 4, [np.inf] * 4])
def test_rope_factors_of_another_kind_are_refused(tmp_path: Path, factors: list[float]) -> None:
    part = Part("rope_freqs.weight", (len(factors),), 0, np.array(factors, "<f4").tobytes())
    sizes = {"llama.attention.key_length": value(U32, 8), "llama.attention.value_length": value(U32, 8)}
    metadata = MINIMAL | sizes | {"llama.rope.freq_base": value(F32, 500000.0)}
    (tmp_path / "model.gguf").write_bytes(gguf(metadata, [*PARTS, part]))
    with pytest.raises(UnsupportedError, match=r"rope_freqs\.weight are not those of a Llama 3"):
        open_checkpoint(tmp_path / "model.gguf")


def test_linear_and_yarn_scaling_are_translated(tmp_path: Path) -> None:
    linear = {"rope__scaling__type": value(STRING, "linear"), "rope__scaling__factor": value(F32, 4.0)}
    with opened_with(tmp_path, **linear) as checkpoint:
        assert checkpoint.config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    with opened_with(tmp_path, rope__scale_linear=value(F32, 2.0)) as checkpoint:
        assert checkpoint.config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    yarn = {
        "rope__scaling__type": value(STRING, "yarn"),
        "rope__scaling__factor": value(F32, 4.0),
        "rope__scaling__original_context_length": value(U32, 64),
    }
    with opened_with(tmp_path, **yarn) as checkpoint:
        scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
        assert checkpoint.config["rope_scaling"] == scaling
    with pytest.raises(UnsupportedError, match="unknown rope scaling 'longrope'"):
        opened_with(tmp_path, rope__scaling__type=value(STRING, "longrope"))


def test_an_unknown_architecture_is_named_and_so_are_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf({"general.architecture": value(STRING, "mamba")}))
    with pytest.raises(UnsupportedError, match="unknown architecture 'mamba'") as caught:
        open_checkpoint(tmp_path / "x.gguf")
    assert caught.value.hint == "known: llama, qwen2, qwen3, gemma3"


@pytest.mark.parametrize("key", [key for key in MINIMAL if key not in ("llama.attention.head_count_kv",)])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    metadata = {name: typed for name, typed in MINIMAL.items() if name != key}
    (tmp_path / "x.gguf").write_bytes(gguf(metadata))
    with pytest.raises(FormatError, match=key.replace(".", r"\.")):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("key", "typed", "expected"),
    [
        ("block_count", value(U32, 0), "an integer from 1 to 1024, found 0"),
        ("block_count", value(U32, 4_000_000_000), "an integer from 1 to 1024, found 4000000000"),
        ("block_count", value(STRING, "many"), "an integer from 1 to 1024, found 'many'"),
        ("attention.head_count", value(U32, 9), "an integer from 1 to 16777216, found 0"),
        ("attention.head_count", array(U32, []), "an integer from 1 to 16777216, found \\[\\]"),
        ("attention.head_count", array(ARRAY, [], 0), "an integer from 1 to 16777216, found \\[\\]"),
        ("attention.layer_norm_rms_epsilon", value(F32, float("nan")), "a number from 1e-20 to 1e\\+20, found nan"),
        ("rope.freq_base", value(F32, 0.0), "a number from 1e-20 to 1e\\+20, found 0.0"),
        ("embedding_length", value(U32, 16), "token_embd.weight \\[tokens, 16\\], found \\[6, 8\\]"),
    ],
)
def test_an_absurd_value_is_refused_with_what_was_expected(
    tmp_path: Path, key: str, typed: bytes, expected: str
) -> None:
    with pytest.raises(FormatError, match=expected):
        opened_with(tmp_path, **{key.replace(".", "__"): typed})


def test_values_given_for_each_layer_must_agree(tmp_path: Path) -> None:
    with opened_with(tmp_path, attention__head_count=array(U32, [2, 2])) as checkpoint:
        assert checkpoint.config["num_attention_heads"] == 2
    with pytest.raises(UnsupportedError, match="head_count differs from layer to layer"):
        opened_with(tmp_path, attention__head_count=array(U32, [2, 4]))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"expert_count": value(U32, 8)}, "mixture-of-experts"),
        ({"rope__dimension_count": value(U32, 2)}, r"rope\.dimension_count to be the head size 4, found 2"),
        ({"attention__value_length": value(U32, 6)}, r"attention\.value_length to be the head size 4, found 6"),
    ],
)
def test_what_we_cannot_translate_is_refused_by_name(tmp_path: Path, changes: dict[str, bytes], found: str) -> None:
    with pytest.raises(UnsupportedError, match=found):
        opened_with(tmp_path, **changes)


def test_a_part_of_a_split_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf(MINIMAL | {"split.count": value(U32, 3)}))
    with pytest.raises(UnsupportedError, match="one of 3 parts"):
        open_checkpoint(tmp_path / "x.gguf")


def test_a_tensor_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf(parts=[*PARTS, f32("blk.0.ffn_gate_exps.weight", 2, 4, 8)]))
    with pytest.raises(UnsupportedError, match=r"blk\.0\.ffn_gate_exps\.weight"):
        open_checkpoint(tmp_path / "x.gguf")


def test_a_tensor_of_a_layer_beyond_the_last_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf(parts=[*PARTS, f32("blk.1.attn_q.weight", 8, 8)]))
    with pytest.raises(FormatError, match=r"blk\.1\.attn_q\.weight' in a model of 1 layers"):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize("missing", ["token_embd.weight", "output_norm.weight"])
def test_a_model_without_its_embedding_or_last_norm_is_refused(tmp_path: Path, missing: str) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf(parts=[part for part in PARTS if part.name != missing]))
    with pytest.raises(FormatError, match=f"expected a tensor {missing}"):
        open_checkpoint(tmp_path / "x.gguf")


def test_rows_that_do_not_divide_into_heads_are_refused_when_loaded(tmp_path: Path) -> None:
    odd = changed(PARTS[2], shape=(6, 8), data=bytes(6 * 8 * 4))
    (tmp_path / "x.gguf").write_bytes(gguf(parts=[PARTS[0], PARTS[1], odd]))
    with open_checkpoint(tmp_path / "x.gguf") as checkpoint, pytest.raises(FormatError, match="even number of rows"):
        checkpoint.load("model.layers.0.self_attn.q_proj.weight")


def test_a_name_the_file_does_not_have_is_one_clear_error() -> None:
    with open_checkpoint(VECTORS / "tiny-llama.gguf") as checkpoint:
        for ask in (checkpoint.info, checkpoint.load, checkpoint.float32):
            with pytest.raises(FormatError, match=r"no tensor lm_head\.weight in .*tiny-llama\.gguf"):
                ask("lm_head.weight")
