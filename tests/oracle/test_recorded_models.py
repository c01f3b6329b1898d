"""Our logits and greedy tokens against those recorded from transformers; needs no torch.

The norm is max |ours - theirs| / max |theirs| over the recorded positions.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from freehold.kernels.cpu import available_tiers
from tests.oracle import recorded

TIERS = ("reference", *available_tiers())


def test_every_family_has_a_recorded_model() -> None:
    types = {json.loads((recorded.MODELS / name / "config.json").read_text())["model_type"] for name in recorded.TINY}
    assert types == {"llama", "qwen2", "qwen3", "gemma3_text"}
    assert len(recorded.TINY) == 9


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", recorded.TINY)
def test_float32_logits_equal_those_of_transformers(name: str, tier: str) -> None:
    path = recorded.MODELS / name
    expected = recorded.vector(path / "expected.npz")
    ours = recorded.logits(path, expected.ids, expected.positions, tier=tier)
    assert recorded.relative(ours, expected.logits) <= recorded.F32_TOLERANCE


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", recorded.TINY)
def test_bfloat16_logits_equal_those_of_transformers(name: str, tier: str) -> None:
    path = recorded.MODELS / name
    expected = recorded.vector(path / "expected.npz")
    ours = recorded.logits(path, expected.ids, expected.bf16_positions, tier=tier, precision="bf16")
    assert recorded.relative(ours, expected.bf16_logits) <= recorded.BF16_TOLERANCE


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", recorded.TINY)
def test_64_greedy_tokens_are_those_of_transformers(name: str, tier: str) -> None:
    path = recorded.MODELS / name
    expected = recorded.vector(path / "expected.npz")
    assert recorded.greedy(path, expected.prompt, 64, tier=tier) == expected.greedy


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qwen3-tied", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
        ("llama-rope-llama3", {"rope_scaling": None}),
        ("llama-tied", {"rms_norm_eps": 1e-2}),
        ("gemma3-tied", {"sliding_window": 23}),
        ("gemma3-tied", {"query_pre_attn_scalar": 17}),
        ("gemma3-old-keys", {"rope_local_base_freq": 110.0}),
        ("gemma3-old-keys", {"rope_scaling": None}),
        ("qwen2-tied", {"num_attention_heads": 2, "num_key_value_heads": 1}),
    ],
)
def test_the_comparison_notices_a_config_that_is_slightly_wrong(
    tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    path = tmp_path / name
    shutil.copytree(recorded.MODELS / name, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    expected = recorded.vector(path / "expected.npz")
    ours = recorded.logits(path, expected.ids, expected.positions, tier=TIERS[1])
    assert recorded.relative(ours, expected.logits) > 2 * recorded.F32_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("tier", ("reference", TIERS[1]))
def test_float32_logits_of_the_builtin_model_equal_those_of_transformers(tier: str) -> None:
    expected = recorded.vector(recorded.MODELS / "smollm2.npz")
    ours = recorded.logits(recorded.smollm2(), expected.ids, expected.positions, tier=tier)
    assert recorded.relative(ours, expected.logits) <= recorded.F32_TOLERANCE


# Not met, and not by us: on this checkpoint transformers' bfloat16 run is itself 2.3e-2 from its own float32 run here
# (3.2e-2 over all 112 positions); ours is 4e-6 from float32 arithmetic on the same bfloat16 matrices (see
# test_live_transformers.py). With sdpa in place of eager attention the two recorded positions come to 1.0e-2, but the
# worst of the 112 stays at 3.3e-2 and a quarter of them above 2e-2, so recording that instead would hide it.
# Strict, so that the day it is met is noticed.
@pytest.mark.slow
@pytest.mark.xfail(strict=True, raises=AssertionError, reason="transformers' own bfloat16 rounding is above 2e-2 here")
def test_bfloat16_logits_of_the_builtin_model_equal_those_of_transformers() -> None:
    expected = recorded.vector(recorded.MODELS / "smollm2.npz")
    ours = recorded.logits(recorded.smollm2(), expected.ids, expected.bf16_positions, tier=TIERS[1], precision="bf16")
    assert recorded.relative(ours, expected.bf16_logits) <= recorded.BF16_TOLERANCE


@pytest.mark.slow
def test_64_greedy_tokens_of_the_builtin_model_are_those_of_transformers() -> None:
    expected = recorded.vector(recorded.MODELS / "smollm2.npz")
    assert recorded.greedy(recorded.smollm2(), expected.prompt, 64, tier=TIERS[1]) == expected.greedy
