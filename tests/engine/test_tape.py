"""The tape: forwards it is the NumPy twin, backwards the derivative that finite differences give."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import numpy as np
import pytest
from tests.engine import tiny

from freehold.engine.calibrate import sections
from freehold.engine.models import program_for
from freehold.engine.tape import Tape
from freehold.kernels import make_executor
from freehold.kernels.matrix import Matrix
from freehold.kernels.program import Program, Step

LENGTH = 12


def plain(weights: dict[str, object]) -> dict[str, np.ndarray]:
    return {name: w.float32() if isinstance(w, Matrix) else w for name, w in weights.items()}  # type: ignore[misc]


def model(architecture: str):  # type: ignore[no-untyped-def]
    program = program_for(tiny.config(**FAMILIES[architecture]))
    return program, tiny.weights(program, quantized=False)


FAMILIES = {
    "llama": {},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "gemma3": {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_act": None,
               "sliding_window": 5, "sliding_window_pattern": 2, "query_pre_attn_scalar": 9},
}  # fmt: skip


def scale_of(program: Program) -> np.float32:
    """What embeddings are multiplied with: streams of another size would be too small for the steps taken here."""
    return np.float32(next(op.attrs["scale"] for op in program.ops if op.kind == "embed"))


def run(program, weights, x):  # type: ignore[no-untyped-def]
    prelude, layers = sections(program)
    tape = Tape(weights, len(x))
    tape.run(prelude)
    tape.values["x"] = x
    for ops in layers:
        tape.run(ops)
    return tape


@pytest.mark.parametrize("architecture", FAMILIES)
def test_forwards_it_gives_the_logits_of_the_reference(architecture: str) -> None:
    program, weights = model(architecture)
    tokens = np.arange(3, 3 + LENGTH, dtype=np.int32)
    rows = np.arange(LENGTH, dtype=np.int32)
    step = Step(tokens, rows, np.zeros_like(rows), np.zeros((1, 1), np.int32), rows)
    expected = make_executor(program, weights, pages=1, kv_dtype="f32", tier="reference").run(step)
    table = weights["embed"]
    assert isinstance(table, Matrix)
    found = run(program, plain(weights), table.rows(tokens) * scale_of(program)).values["logits"]
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_backwards_it_gives_what_finite_differences_give(architecture: str) -> None:
    program, loaded = model(architecture)
    weights = plain(loaded)
    random = np.random.default_rng(0)
    x = random.normal(0, 1, (LENGTH, program.buffers["x"].columns)).astype(np.float32) * scale_of(program)
    slope = random.normal(0, 1, (LENGTH, program.vocabulary)).astype(np.float32)
    tape = run(program, weights, x)
    gradient = tape.backward({"logits": slope.copy()})["x"]
    for _ in range(4):
        direction = random.normal(0, 1, x.shape).astype(np.float32)
        step = np.float32(1e-2)
        high, low = (run(program, weights, x + s * step * direction).values["logits"] for s in (1, -1))
        numeric = float(((high.astype(np.float64) - low) * slope).sum() / (2 * step))
        assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=2e-2, abs=2e-2)


def test_a_linears_gradients_belong_to_its_own_output_and_input() -> None:
    program, loaded = model("llama")
    weights = plain(loaded)
    x = np.random.default_rng(1).normal(0, 1, (LENGTH, program.buffers["x"].columns)).astype(np.float32)
    tape = run(program, weights, x)
    tape.backward({"logits": np.ones((LENGTH, program.vocabulary), np.float32)})
    assert {seen.weight for seen in tape.linears} == {
        name for op in program.ops if op.kind == "linear" for name in op.weights[:1]
    }
    for seen in tape.linears:
        assert seen.gradient.shape == (LENGTH, len(weights[seen.weight]))
        assert np.allclose(seen.input_gradient, seen.gradient @ weights[seen.weight], rtol=1e-4, atol=1e-5)


def test_an_operation_without_a_derivative_is_named() -> None:
    from freehold.errors import UnsupportedError

    program, loaded = model("llama")
    op = dataclasses.replace(program.ops[-1], kind="moe")
    with pytest.raises(UnsupportedError, match="moe"):
        Tape(plain(loaded), LENGTH).run([op])


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_tape_nobody_holds_is_gone_at_once(architecture: str) -> None:
    program, weights = model(architecture)
    x = np.ones((LENGTH, program.buffers["x"].columns), np.float32)
    gc.disable()  # a ring of references would be found sometime, and 20 GB later
    try:
        tape = run(program, plain(weights), x)
        tape.backward({"logits": np.ones((LENGTH, program.vocabulary), np.float32)})
        held = weakref.ref(tape.values["logits"])
        del tape
        assert held() is None
    finally:
        gc.enable()
