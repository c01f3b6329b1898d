"""Llama (and Mistral, which differs only in names): arXiv 2302.13971, 2407.21783."""

from __future__ import annotations

from freehold.engine.models.config import Config
from freehold.engine.models.decoder import Shape, Traits, decoder
from freehold.kernels.program import Program


def build(config: Config) -> Program:
    """The program of a Llama-like model; `attention_bias` and `mlp_bias` add biases to all their projections."""
    bias = config.flag("attention_bias", default=False)
    mlp_bias = config.flag("mlp_bias", default=False)
    return decoder("llama", config, Shape.of(config), Traits(qkv_bias=bias, o_bias=bias, mlp_bias=mlp_bias))
