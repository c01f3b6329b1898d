"""Recorded vectors (see tests/vectors/make_models.py) and our side of the comparison. Knows neither torch nor HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from freehold.engine.loading import Precision, load_weights
from freehold.engine.models import program_for
from freehold.engine.request import GenerateRequest, Sampling
from freehold.engine.runner import Engine
from freehold.formats import open_checkpoint
from freehold.kernels import make_executor
from freehold.kernels.program import PAGE, Step
from freehold.settings import EngineSettings

MODELS = Path(__file__).parent.parent / "vectors" / "models"
TINY = tuple(sorted(path.parent.name for path in MODELS.glob("*/expected.npz")))
F32_TOLERANCE = 1e-3
BF16_TOLERANCE = 2e-2

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Vector:
    """One recorded .npz; its fields are described in tests/vectors/make_models.py."""

    prompt: list[int]
    greedy: list[int]
    positions: list[int]
    logits: F32
    bf16_positions: list[int]
    bf16_logits: F32

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.greedy


def vector(path: Path) -> Vector:
    """The recorded vector of a file; bfloat16 bits widened to float32."""
    with np.load(path) as file:
        return Vector(
            prompt=file["prompt"].tolist(),
            greedy=file["greedy"].tolist(),
            positions=file["positions"].tolist(),
            logits=file["logits"],
            bf16_positions=file["bf16_positions"].tolist(),
            bf16_logits=widen(file["bf16_logits"]),
        )


def widen(bits: NDArray[np.uint16]) -> F32:
    """Bfloat16 bits as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def relative(ours: F32, theirs: F32) -> float:
    """max |ours - theirs| / max |theirs| over all positions and tokens given."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def logits(path: Path, ids: list[int], positions: list[int], *, tier: str, precision: Precision = "f32") -> F32:
    """Our logits [P, V] at some positions of one sequence, its pages out of order, in one step; KV cache in float32."""
    with open_checkpoint(path) as checkpoint:
        program = program_for(checkpoint.config)
        weights = load_weights(checkpoint, program, precision).weights
    pages = -(-len(ids) // PAGE)
    executor = make_executor(program, weights, pages=pages, kv_dtype="f32", threads=2, tier=tier)
    count = len(ids)
    return executor.run(
        Step(
            tokens=np.array(ids, np.int32),
            positions=np.arange(count, dtype=np.int32),
            sequences=np.zeros(count, np.int32),
            tables=np.arange(pages, dtype=np.int32)[::-1][None],
            outputs=np.array(positions, np.int32),
        )
    )


def greedy(path: Path, prompt: list[int], count: int, *, tier: str) -> list[int]:
    """What the engine generates at temperature 0, its prefill in chunks of 20 tokens."""
    settings = EngineSettings(isa=tier, kv_dtype="f32", max_step_tokens=20, threads=2, kv_memory_mb=64)
    engine = Engine.load(path, settings, precision="f32")
    engine.add(GenerateRequest(id="greedy", prompt=prompt, sampling=Sampling(temperature=0.0, max_tokens=count)))
    tokens: list[int] = []
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            assert output.token is not None
            tokens.append(output.token)
    return tokens


def smollm2() -> Path:
    """The built-in model's file, fetched when it is not here yet."""
    from freehold.formats import store

    return store.resolve("smollm2")
