"""The same comparison live: transformers loads the same checkpoints in the same process. Needs the oracle environment.

Here every position of the sequence is compared, not only the recorded ones, and the recorded vectors are checked for
staleness against the installed transformers.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.kernels.cpu import available_tiers
from tests.oracle import recorded

torch = pytest.importorskip("torch", reason="torch is not installed: run `make oracle`")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: run `make oracle`")

pytestmark = pytest.mark.oracle
TIER = available_tiers()[0]
STALE = 1e-4
"""How far a recorded vector may be from what the installed transformers computes: other CPUs add up in other orders."""


def load(path: Path, dtype: Any) -> Any:
    """What transformers makes of a checkpoint directory."""
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager").eval()


def theirs(model: Any, ids: list[int]) -> recorded.F32:
    """All logits of a sequence, float32 [T, V]."""
    with torch.no_grad():
        out: recorded.F32 = model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
    return out


def their_greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """`generate` without sampling and without stopping."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


@pytest.fixture(scope="module")
def smollm2() -> Any:
    """The built-in model, dequantized by transformers in float32."""
    from tests.vectors.make_models import load_smollm2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third parties, while they read GGUF
        return load_smollm2(recorded.smollm2())[0]


@pytest.mark.parametrize("name", recorded.TINY)
def test_all_float32_logits_equal(name: str) -> None:
    path = recorded.MODELS / name
    ids = recorded.vector(path / "expected.npz").ids
    ours = recorded.logits(path, ids, list(range(len(ids))), tier=TIER)
    assert recorded.relative(ours, theirs(load(path, torch.float32), ids)) <= recorded.F32_TOLERANCE


@pytest.mark.parametrize("name", recorded.TINY)
def test_all_bfloat16_logits_equal(name: str) -> None:
    path = recorded.MODELS / name
    ids = recorded.vector(path / "expected.npz").ids
    ours = recorded.logits(path, ids, list(range(len(ids))), tier=TIER, precision="bf16")
    assert recorded.relative(ours, theirs(load(path, torch.bfloat16), ids)) <= recorded.BF16_TOLERANCE


@pytest.mark.parametrize("name", recorded.TINY)
def test_64_greedy_tokens_are_identical(name: str) -> None:
    path = recorded.MODELS / name
    prompt = recorded.vector(path / "expected.npz").prompt
    assert recorded.greedy(path, prompt, 64, tier=TIER) == their_greedy(load(path, torch.float32), prompt, 64)


@pytest.mark.parametrize("name", recorded.TINY)
def test_the_recorded_vectors_are_what_transformers_still_computes(name: str) -> None:
    path = recorded.MODELS / name
    vector, model = recorded.vector(path / "expected.npz"), load(path, torch.float32)
    assert recorded.relative(theirs(model, vector.ids)[vector.positions], vector.logits) <= STALE
    assert their_greedy(model, vector.prompt, 64) == vector.greedy


def test_all_float32_logits_of_the_builtin_model_equal(smollm2: Any) -> None:
    vector = recorded.vector(recorded.MODELS / "smollm2.npz")
    ours = recorded.logits(recorded.smollm2(), vector.ids, list(range(len(vector.ids))), tier=TIER)
    full = theirs(smollm2, vector.ids)
    assert recorded.relative(ours, full) <= recorded.F32_TOLERANCE
    assert recorded.relative(full[vector.positions], vector.logits) <= STALE


def test_64_greedy_tokens_of_the_builtin_model_are_identical(smollm2: Any) -> None:
    prompt = recorded.vector(recorded.MODELS / "smollm2.npz").prompt
    assert recorded.greedy(recorded.smollm2(), prompt, 64, tier=TIER) == their_greedy(smollm2, prompt, 64)


def test_bfloat16_matrices_of_the_builtin_model_give_what_float32_arithmetic_gives_on_them(smollm2: Any) -> None:
    ids = recorded.vector(recorded.MODELS / "smollm2.npz").ids
    rounded = copy.deepcopy(smollm2)
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.ndim == 2:
                parameter.copy_(parameter.to(torch.bfloat16).float())
    ours = recorded.logits(recorded.smollm2(), ids, list(range(len(ids))), tier=TIER, precision="bf16")
    assert recorded.relative(ours, theirs(rounded, ids)) <= recorded.F32_TOLERANCE


def test_our_bfloat16_run_of_the_builtin_model_is_closer_to_float32_than_that_of_transformers(smollm2: Any) -> None:
    ids = recorded.vector(recorded.MODELS / "smollm2.npz").ids
    full, halved = theirs(smollm2, ids), theirs(copy.deepcopy(smollm2).to(torch.bfloat16), ids)
    ours = recorded.logits(recorded.smollm2(), ids, list(range(len(ids))), tier=TIER, precision="bf16")
    assert np.abs(ours - full).max() < np.abs(halved - full).max()
