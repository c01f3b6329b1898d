"""Qwen3 (dense): RMSNorm on each head of q and k instead of biases (arXiv 2505.09388)."""

from __future__ import annotations

from freehold.engine.models.config import Config
from freehold.engine.models.decoder import Shape, Traits, decoder
from freehold.kernels.program import Program


def build(config: Config) -> Program:
    """The program of a Qwen3 model; head_dim is 128 where the config doesn't say (transformers' Qwen3Config)."""
    bias = config.flag("attention_bias", default=False)
    traits = Traits(qkv_bias=bias, o_bias=bias, head_norms=True)
    return decoder("qwen3", config, Shape.of(config, head_dim=128), traits)
