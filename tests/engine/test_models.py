"""Model programs: each family computes what its published arithmetic says, and bad configs are refused by their key."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.engine import tiny

from freehold.engine.models import FAMILIES, program_for
from freehold.engine.models.config import Config
from freehold.engine.models.rope import frequencies
from freehold.errors import FormatError, FreeholdError, UnsupportedError
from freehold.kernels import make_executor
from freehold.kernels.program import Step

F64 = NDArray[np.float64]


def norm(x: F64, gain: F64, eps: float) -> F64:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * gain


def plain(config: dict[str, Any], values: dict[str, F64], tokens: list[int]) -> F64:
    """Logits [T, V] of a decoder, written out plainly in float64 from the papers, with full attention and no cache."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    eps, count = config["rms_norm_eps"], len(tokens)

    def linear(x: F64, module: str) -> F64:
        return x @ values[f"{module}.weight"].T + values.get(f"{module}.bias", 0.0)

    gemma = config["model_type"] == "gemma3_text"
    extra = 1.0 if gemma else 0.0

    def rotate(x: F64, theta: float) -> F64:
        turn = np.exp(1j * np.outer(np.arange(count), theta ** (-np.arange(0, dim, 2) / dim)))[:, None, :]
        turned = (x[..., : dim // 2] + 1j * x[..., dim // 2 :]) * turn
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def gain(module: str) -> F64:
        return values[f"{module}.weight"] + extra

    x = values["model.embed_tokens.weight"][tokens] * (math.sqrt(config["hidden_size"]) if gemma else 1.0)
    for layer in range(config["num_hidden_layers"]):
        here = f"model.layers.{layer}"
        h = norm(x, gain(f"{here}.input_layernorm"), eps)
        q = linear(h, f"{here}.self_attn.q_proj").reshape(count, heads, dim)
        k = linear(h, f"{here}.self_attn.k_proj").reshape(count, kv_heads, dim)
        v = linear(h, f"{here}.self_attn.v_proj").reshape(count, kv_heads, dim)
        if f"{here}.self_attn.q_norm.weight" in values:
            q = norm(q, gain(f"{here}.self_attn.q_norm"), eps)
            k = norm(k, gain(f"{here}.self_attn.k_norm"), eps)
        local = gemma and (layer + 1) % config["sliding_window_pattern"] != 0
        theta = config["rope_local_base_freq"] if local else config["rope_theta"]
        q, k = rotate(q, theta), rotate(k, theta)
        k, v = np.repeat(k, heads // kv_heads, axis=1), np.repeat(v, heads // kv_heads, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(config.get("query_pre_attn_scalar", dim))
        distance = np.arange(count)[:, None] - np.arange(count)[None, :]
        reach = config["sliding_window"] if local else count
        scores = np.where((distance >= 0) & (distance < reach), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        attended = np.einsum("hqk,khd->qhd", weights, v).reshape(count, heads * dim)
        attended = linear(attended, f"{here}.self_attn.o_proj")
        x = x + (norm(attended, gain(f"{here}.post_attention_layernorm"), eps) if gemma else attended)
        before = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
        h = norm(x, gain(f"{here}.{before}"), eps)
        gate = linear(h, f"{here}.mlp.gate_proj")
        tanh = np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))
        gate = gate / 2 * (1 + tanh) if gemma else gate / (1 + np.exp(-gate))
        inner = linear(gate * linear(h, f"{here}.mlp.up_proj"), f"{here}.mlp.down_proj")
        x = x + (norm(inner, gain(f"{here}.post_feedforward_layernorm"), eps) if gemma else inner)
    head = "model.embed_tokens" if config.get("tie_word_embeddings", gemma) else "lm_head"
    return linear(norm(x, gain("model.norm"), eps), head)


CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "llama with a head_dim of its own": {"head_dim": 24, "num_key_value_heads": 4},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "tie_word_embeddings": False},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 32,
        "tie_word_embeddings": False,
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_act": None,
        "num_hidden_layers": 4,
        "head_dim": 32,
        "num_key_value_heads": 1,
        "sliding_window": 11,
        "sliding_window_pattern": 3,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "query_pre_attn_scalar": 20,
        "tie_word_embeddings": None,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_family_computes_what_its_paper_says(case: str) -> None:
    config = tiny.config(**CASES[case])
    program = program_for(config)
    executor = make_executor(program, tiny.weights(program, quantized=False), pages=2, kv_dtype="f32", tier="reference")
    tokens = tiny.prompts(1, longest=100, seed=3)[0][:70]
    rows = np.arange(len(tokens), dtype=np.int32)
    tables = np.array([[1, 0]], np.int32)
    logits = executor.run(Step(np.array(tokens, np.int32), rows, np.zeros_like(rows), tables, rows))
    values = {name: value.astype(np.float64) for name, value in tiny.tensors(program).items()}
    expected = plain(config, values, tokens)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * float(np.abs(expected).max()))


def test_each_family_has_the_tensors_that_make_it_special() -> None:
    def sources(case: str) -> set[str]:
        program = program_for(tiny.config(**CASES[case]))
        return {source.split("layers.0.")[-1] for spec in program.weights.values() for source in spec.sources}

    assert "self_attn.q_proj.bias" in sources("qwen2")
    assert "self_attn.o_proj.bias" not in sources("qwen2")
    assert {"self_attn.o_proj.bias", "mlp.down_proj.bias"} <= sources("llama with biases")
    assert {"self_attn.q_norm.weight", "self_attn.k_norm.weight"} <= sources("qwen3")
    assert {"pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"} <= sources("gemma3")
    assert not any(name.endswith("bias") for name in sources("llama") | sources("mistral") | sources("qwen3"))


def test_the_model_type_decides_when_no_architecture_is_named() -> None:
    assert program_for(tiny.config(architectures=None, model_type="qwen2")).architecture == "qwen2"


@pytest.mark.parametrize(
    "named", [{"architectures": ["NewForCausalLM"]}, {"architectures": None, "model_type": "newton"}]
)
def test_an_unknown_architecture_is_named_and_so_are_the_known_ones(named: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"NewForCausalLM|newton") as caught:
        program_for(tiny.config(**named))
    assert all(name in (caught.value.hint or "") for name in FAMILIES)


def test_a_config_that_names_no_model_is_refused() -> None:
    with pytest.raises(FormatError, match="lacks both"):
        program_for({})


REQUIRED = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
]


@pytest.mark.parametrize("key", REQUIRED)
@pytest.mark.parametrize("value", [None, 0, -1, 2**63, "64", 1e400, [64], True, math.nan])
def test_a_missing_or_absurd_size_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(FormatError, match=key):
        program_for(tiny.config(**{key: value}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 must divide num_attention_heads 4"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"rope_theta": "big"}, "rope_theta"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be an object"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"attention_bias": 1}, "attention_bias must be true or false"),
        (
            {
                "hidden_size": 1 << 17,
                "intermediate_size": 1 << 20,
                "num_hidden_layers": 1000,
                "num_attention_heads": 256,
            },
            "sizes multiply out",
        ),
    ],
)
def test_an_impossible_config_is_refused_with_the_reason(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        program_for(tiny.config(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu"},
        {"partial_rotary_factor": 0.5},
        {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
    ],
)
def test_arithmetic_we_do_not_have_is_refused_rather_than_ignored(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"hidden_act|partial_rotary|longrope|dynamic"):
        program_for(tiny.config(**changes))


GEMMA = CASES["gemma3"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_activation": "gelu"}, "hidden_activation"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_a_gemma_that_computes_something_else_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        program_for(tiny.config(**GEMMA | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sliding_window": None}, "sliding_window is missing"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"layer_types": ["full_attention"]}, "layer_types must name one of .* for each of 4 layers"),
        ({"layer_types": ["full_attention"] * 3 + ["local"]}, "layer_types"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ({"rope_local_base_freq": "1e4"}, "rope_local_base_freq"),
        ({"rope_parameters": {"sliding_attention": 3}}, "sliding_attention must be an object"),
    ],
)
def test_an_impossible_gemma_is_refused_by_its_key(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        program_for(tiny.config(**GEMMA | changes))


def test_a_gemma_serves_its_whole_context_as_its_program_has_the_windows() -> None:
    program = program_for(tiny.config(**GEMMA))
    windows = [op.attrs.get("window", 0) for op in program.ops if op.kind == "attention"]
    assert (windows, program.context) == ([11, 11, 0, 11], 1024)


def test_no_config_value_gets_past_as_anything_but_a_freehold_error() -> None:
    for key in tiny.CONFIG:
        for value in (None, "", "x", [], {}, {"a": 1}, -5, 0, 1e30, math.inf, True, 10**30):
            try:
                program_for(tiny.config() | {key: value})
            except FreeholdError:
                continue


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({"model_type": "mistral", "sliding_window": 256}, 256),
        ({"model_type": "mistral", "sliding_window": None}, 1024),
        ({"model_type": "qwen2", "sliding_window": 256, "use_sliding_window": False}, 1024),
        ({"model_type": "qwen2", "sliding_window": 256}, 1024),
        ({"model_type": "qwen2", "sliding_window": 256, "use_sliding_window": True}, 256),
    ],
)
def test_the_context_ends_where_a_sliding_window_would_begin_to_matter(changes: dict[str, Any], context: int) -> None:
    assert program_for(tiny.config(architectures=None, **changes)).context == context


def inverse(**changes: Any) -> tuple[NDArray[np.float32], float]:
    return frequencies(Config(tiny.config(**changes)), 16, 1024)


def test_rope_theta_is_read_from_both_places() -> None:
    old, _ = inverse(rope_theta=500000.0)
    new, _ = inverse(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    np.testing.assert_array_equal(old, new)
    np.testing.assert_allclose(old, 500000.0 ** (-np.arange(0, 16, 2) / 16), rtol=1e-6)


def test_linear_scaling_divides_every_frequency() -> None:
    scaled, factor = inverse(rope_scaling={"type": "linear", "factor": 4.0})
    np.testing.assert_allclose(scaled, inverse()[0] / 4, rtol=1e-6)
    assert factor == 1.0


def test_llama3_scaling_keeps_fast_turns_divides_slow_ones_and_blends_between() -> None:
    parameters = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    base = inverse()[0]
    scaled, _ = inverse(rope_scaling={"rope_type": "llama3", **parameters})
    turns = 256 * base / (2 * math.pi)  # turns within the trained context
    np.testing.assert_allclose(scaled[turns > 4], base[turns > 4], rtol=1e-6)
    np.testing.assert_allclose(scaled[turns < 1], base[turns < 1] / 8, rtol=1e-6)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    blend = (turns[between] - 1) / 3
    np.testing.assert_allclose(scaled[between], base[between] * (blend + (1 - blend) / 8), rtol=1e-5)


def test_yarn_keeps_fast_turns_divides_slow_ones_and_scales_attention() -> None:
    parameters = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    base = inverse()[0]
    scaled, factor = inverse(rope_scaling=parameters)
    ratio = scaled / base
    assert ratio[0] == 1.0
    assert ratio[-1] == 0.25
    assert (np.diff(ratio) <= 0).all()
    assert factor == pytest.approx(0.1 * math.log(4.0) + 1.0)
    assert inverse(rope_scaling=parameters | {"attention_factor": 1.5})[1] == 1.5
