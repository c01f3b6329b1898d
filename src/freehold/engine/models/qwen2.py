"""Qwen2 and Qwen2.5: Llama with a bias on q, k and v only (arXiv 2407.10671)."""

from __future__ import annotations

from freehold.engine.models.config import Config
from freehold.engine.models.decoder import Shape, Traits, decoder
from freehold.kernels.program import Program


def build(config: Config) -> Program:
    """The program of a Qwen2 model."""
    return decoder("qwen2", config, Shape.of(config), Traits(qkv_bias=True))
