"""The outlier guard: marked linears are read in two passes, which gives what float activations give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.engine import tiny

from freehold.engine.models import program_for
from freehold.errors import FormatError
from freehold.kernels import make_executor
from freehold.kernels.matrix import Matrix
from freehold.kernels.program import Step

MODULE = "model.layers.0.mlp.down_proj"


def step(length: int) -> Step:
    rows = np.arange(length, dtype=np.int32)
    return Step(rows + 5, rows, np.zeros_like(rows), np.zeros((1, 1), np.int32), rows)


def logits(config: dict[str, Any], weights: dict[str, Any], tier: str, length: int = 9) -> np.ndarray:
    program = program_for(config)
    return make_executor(program, weights, pages=1, kv_dtype="f32", tier=tier).run(step(length)).copy()


@pytest.mark.parametrize("tier", ["reference", "portable"])
@pytest.mark.parametrize("length", [1, 9])
def test_two_passes_give_what_float_activations_give(tier: str, length: int) -> None:
    config = tiny.config()
    weights = tiny.weights(program_for(config))
    program = program_for(config)
    linears = [op.weights[0] for op in program.ops if op.kind == "linear"]
    marks = [name.removesuffix(".weight") for weight in linears for name in program.weights[weight].sources]
    units = {part.act_group for w in weights.values() if isinstance(w, Matrix) for part in w.parts}
    assert len(units) == 1
    marked = config | {"freehold": {"two_pass": dict.fromkeys(marks, units.pop())}}
    dense = {k: Matrix(tuple(map(_float, w.parts))) if isinstance(w, Matrix) else w for k, w in weights.items()}
    truth = logits(config, dense, "reference", length)
    once, twice = (logits(c, weights, tier, length) for c in (config, marked))
    assert np.abs(twice - truth).max() < 0.05 * np.abs(once - truth).max()


def _float(part: Any) -> Any:
    from freehold.kernels.matrix import FloatMatrix

    return FloatMatrix(part.float32())


def test_every_tier_equals_the_twin_in_what_a_pass_loses() -> None:
    config = tiny.config() | {"freehold": {"two_pass": {MODULE: 32}}}
    program, weights = program_for(config), tiny.weights(program_for(tiny.config()))
    found = []
    for tier in ("reference", "portable"):
        executor = make_executor(program, weights, pages=1, kv_dtype="f32", tier=tier)
        executor.run(step(9))
        found.append(executor.buffer("gated.lost", 9))
    assert np.allclose(found[0], found[1], rtol=0, atol=1e-4)
    assert np.abs(found[0]).max() > 0


def test_only_marked_modules_are_read_twice() -> None:
    plain = program_for(tiny.config())
    marked = program_for(tiny.config() | {"freehold": {"two_pass": {MODULE: 32}}})
    more = [op for op in marked.ops if op not in plain.ops]
    assert [op.kind for op in more] == ["residual", "linear"]
    assert more[1].weights == ("layers.0.down",)
    assert more[1].attrs["accumulate"] == 1.0


def test_float_weights_ignore_the_marks() -> None:
    marked = program_for(tiny.config() | {"freehold": {"two_pass": {MODULE: 32}}}, guard=False)
    assert marked.ops == program_for(tiny.config()).ops


@pytest.mark.parametrize("marks", [[MODULE], {MODULE: 48}, {MODULE: True}, "all"])
def test_marks_that_make_no_sense_are_refused(marks: Any) -> None:
    with pytest.raises(FormatError, match="two_pass"):
        program_for(tiny.config() | {"freehold": {"two_pass": marks}})
