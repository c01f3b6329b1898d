"""Embeddings from the engine, held against the program's own final norm on the NumPy twin."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.engine import tiny

from freehold.engine.embedding import FinalNorm
from freehold.engine.request import GenerateRequest
from freehold.engine.runner import Engine
from freehold.errors import ContextLengthError, UnsupportedError, UsageError
from freehold.kernels import make_executor
from freehold.kernels.cpu import choose_tier
from freehold.kernels.program import Step
from freehold.settings import EngineSettings


def engine(*, tier: str = "reference", pages: int = 64, **settings: int) -> Engine:
    program = tiny.program_for(tiny.config())
    weights = tiny.weights(program)
    executor = make_executor(program, weights, pages=pages, tier=tier)
    norm = FinalNorm.of(program, weights)
    return Engine(program, executor, EngineSettings(**settings), pages=pages, norm=norm)


def truth(prompt: list[int], pooling: str) -> NDArray[np.float64]:
    """All rows through the head's own norm, on the twin, in one step."""
    program = tiny.program_for(tiny.config())
    twin = make_executor(program, tiny.weights(program), pages=8, tier="reference")
    count = len(prompt)
    rows = np.arange(count, dtype=np.int32)
    twin.run(
        Step(
            tokens=np.array(prompt, np.int32),
            positions=rows,
            sequences=np.zeros(count, np.int32),
            tables=np.arange(8, dtype=np.int32)[None, :],
            outputs=rows,
        )
    )
    normed = twin.buffer("last_h", count).astype(np.float64)
    vector = normed.mean(axis=0) if pooling == "mean" else normed[-1]
    found: NDArray[np.float64] = vector / np.linalg.norm(vector)
    return found


def embed(running: Engine, prompt: list[int], pooling: str) -> list[float]:
    running.add(GenerateRequest("a", prompt, pooling=pooling))
    (output,) = tiny.drain(running)["a"]
    assert (output.finish, output.token, output.prompt_tokens) == ("stop", None, len(prompt))
    assert output.embedding is not None
    return output.embedding


@pytest.mark.parametrize("tier", ["reference", choose_tier("auto").value])
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("length", [1, 2, 65, 200])
def test_an_embedding_is_the_pooled_final_state(tier: str, pooling: str, length: int) -> None:
    prompt = np.random.default_rng(length).integers(0, tiny.VOCABULARY, length).tolist()
    found = embed(engine(tier=tier), prompt, pooling)
    # Where something is rounded to int8, float noise may flip a rounding; a few of them move a component by this much.
    np.testing.assert_allclose(found, truth(prompt, pooling), atol=6e-3)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_chunks_and_company_change_nothing(pooling: str) -> None:
    prompts = tiny.prompts(6)
    alone = [embed(engine(), prompt, pooling) for prompt in prompts]
    running = engine(max_step_tokens=16)
    running.add(tiny.request("talk", [5, 6, 7]))
    for i, prompt in enumerate(prompts):
        running.add(GenerateRequest(str(i), prompt, pooling=pooling))
    outputs = tiny.drain(running)
    assert len(outputs["talk"]) == 12
    for i, expected in enumerate(alone):
        np.testing.assert_allclose(outputs[str(i)][0].embedding, expected, atol=1e-6)


def test_a_preempted_prompt_is_gathered_afresh() -> None:
    prompt = np.random.default_rng(0).integers(0, tiny.VOCABULARY, 100).tolist()
    expected = embed(engine(), prompt, "mean")
    running = engine(pages=3, max_step_tokens=8)  # room for the talk or for the prompt, not for both as they grow
    running.add(tiny.request("talk", list(range(63)), max_tokens=80))
    running.add(GenerateRequest("a", prompt, pooling="mean"))
    outputs = tiny.drain(running)
    np.testing.assert_allclose(outputs["a"][0].embedding, expected, atol=1e-6)
    assert len(outputs["talk"]) == 80 and running.stats.preemptions > 0


def test_pages_are_free_again_and_a_prompt_may_fill_the_context() -> None:
    running = engine(pages=2)
    embed(running, [1] * 128, "mean")
    assert running.stats.kv_pages_used == 0
    with pytest.raises(ContextLengthError):
        running.add(GenerateRequest("a", [1] * 129, pooling="mean"))


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(UsageError, match="pooling must be one of mean, last"):
        GenerateRequest("a", [1], pooling="max")


def test_an_engine_without_its_norm_refuses() -> None:
    with pytest.raises(UnsupportedError, match="no embeddings"):
        tiny.engine().add(GenerateRequest("a", [1], pooling="mean"))
