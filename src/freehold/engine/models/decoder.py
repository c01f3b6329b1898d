"""Blocks shared by every pre-norm decoder: shape from config, then embed, layers, head.

This module knows Hugging Face's tensor names and the instruction set; a family's file only says what is special to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from freehold.engine.models.config import Config
from freehold.engine.models.rope import frequencies
from freehold.errors import FormatError, UnsupportedError
from freehold.kernels.program import Buffer, Op, Program, WeightSpec

MAX_PARAMETERS = 1 << 42
"""A config that multiplies out to more weights than this is a mistake or an attack."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    eps: float
    tied: bool

    @classmethod
    def of(cls, config: Config, *, head_dim: int | None = None) -> Shape:
        """Sizes from config.json, each within bounds that no real model exceeds.

        Args:
            head_dim: the family's default where the config has none; None = hidden_size / num_attention_heads.
        """
        hidden = config.integer("hidden_size", high=1 << 17)
        heads = config.integer("num_attention_heads", high=1 << 12)
        kv_heads = config.integer("num_key_value_heads", default=heads, high=1 << 12)
        dim = config.integer("head_dim", default=head_dim or max(hidden // heads, 1), high=1 << 10)
        if heads % kv_heads:
            raise FormatError(f"config.json: num_key_value_heads {kv_heads} must divide num_attention_heads {heads}")
        if dim % 2:
            raise FormatError(f"config.json: head_dim must be even, found {dim}")
        shape = cls(
            hidden=hidden,
            intermediate=config.integer("intermediate_size", high=1 << 20),
            layers=config.integer("num_hidden_layers", high=1 << 10),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=dim,
            vocabulary=config.integer("vocab_size", high=1 << 24),
            context=_context(config),
            eps=config.number("rms_norm_eps", high=1.0),
            tied=config.flag("tie_word_embeddings", default=False),
        )
        if shape.parameters > MAX_PARAMETERS:
            raise FormatError(
                f"config.json: sizes multiply out to {shape.parameters} weights, more than {MAX_PARAMETERS}"
            )
        _refuse_other_arithmetic(config)
        return shape

    @property
    def parameters(self) -> int:
        """Weights of the matrices, roughly."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + 2 * self.vocabulary * self.hidden


def _context(config: Config) -> int:
    """Longest sequence for which full attention is what the model was trained with."""
    context = config.integer("max_position_embeddings", high=1 << 27)
    # Qwen configs name a window they don't use unless use_sliding_window says so; Mistral has no such switch
    windowed = not str(config.raw("model_type")).startswith("qwen")
    if config.has("sliding_window") and config.flag("use_sliding_window", default=windowed):
        context = min(context, config.integer("sliding_window", high=1 << 27))
    return context


def _refuse_other_arithmetic(config: Config) -> None:
    activation = config.text("hidden_act", default="silu")
    if activation != "silu":
        raise UnsupportedError(f"config.json: hidden_act {activation[:80]!r} is not supported", hint="known: silu")
    if config.number("partial_rotary_factor", default=1.0) != 1.0:
        raise UnsupportedError("config.json: partial_rotary_factor other than 1 is not supported")


@dataclass(slots=True)
class _Builder:
    ops: list[Op] = field(default_factory=list)
    weights: dict[str, WeightSpec] = field(default_factory=dict)

    def op(
        self, kind: str, out: str, inputs: tuple[str, ...] = (), weights: tuple[str, ...] = (), **attrs: float
    ) -> None:
        self.ops.append(Op(kind, out, inputs, weights, attrs))

    def matrix(self, name: str, *sources: str) -> str:
        self.weights[name] = WeightSpec(sources)
        return name

    def vector(self, name: str, *sources: str) -> str:
        self.weights[name] = WeightSpec(sources, "vector")
        return name

    def constant(self, name: str, value: NDArray[np.float32]) -> str:
        self.weights[name] = WeightSpec((), "constant", value)
        return name

    def linear(
        self, name: str, out: str, x: str, modules: tuple[str, ...], *, bias: bool, accumulate: bool = False
    ) -> None:
        """out (+)= x @ W.T (+ bias), with the modules' weights stacked into one."""
        weights = [self.matrix(name, *(f"{module}.weight" for module in modules))]
        if bias:
            weights.append(self.vector(f"{name}.bias", *(f"{module}.bias" for module in modules)))
        self.op("linear", out, (x,), tuple(weights), accumulate=float(accumulate))


def decoder(
    architecture: str,
    config: Config,
    shape: Shape,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    head_norms: bool = False,
) -> Program:
    """The program of a pre-norm decoder with grouped-query attention, RoPE and a gated SiLU MLP.

    Args:
        head_norms: RMSNorm over each head of q and k before RoPE (Qwen3).
    """
    make = _Builder()
    inverse, factor = frequencies(config, shape.head_dim, shape.context)
    make.op("embed", "x", weights=(make.matrix("embed", "model.embed_tokens.weight"),), scale=1.0)
    make.op("rope_table", "rope", weights=(make.constant("inv_freq", inverse),), factor=factor)
    for layer in range(shape.layers):
        _attention(make, shape, layer, qkv_bias=qkv_bias, o_bias=o_bias, head_norms=head_norms)
        _mlp(make, shape, layer, bias=mlp_bias)
    _head(make, shape)
    return Program(
        architecture=architecture,
        buffers=_buffers(shape),
        ops=tuple(make.ops),
        weights=make.weights,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocabulary=shape.vocabulary,
        context=shape.context,
    )


def _buffers(shape: Shape) -> Mapping[str, Buffer]:
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "x": Buffer(shape.hidden),
        "h": Buffer(shape.hidden),
        "rope": Buffer(shape.head_dim),
        "qkv": Buffer(query + 2 * key),
        "attended": Buffer(query),
        "gate_up": Buffer(2 * shape.intermediate),
        "gated": Buffer(shape.intermediate),
        "last": Buffer(shape.hidden, "outputs"),
        "last_h": Buffer(shape.hidden, "outputs"),
        "logits": Buffer(shape.vocabulary, "outputs"),
    }


def _attention(make: _Builder, shape: Shape, layer: int, *, qkv_bias: bool, o_bias: bool, head_norms: bool) -> None:
    name, source = f"layers.{layer}", f"model.layers.{layer}"
    heads, kv_heads, dim = shape.heads, shape.kv_heads, shape.head_dim
    gain = make.vector(f"{name}.attention_norm", f"{source}.input_layernorm.weight")
    make.op("rmsnorm", "h", ("x",), (gain,), eps=shape.eps)
    projections = tuple(f"{source}.self_attn.{part}_proj" for part in "qkv")
    make.linear(f"{name}.qkv", "qkv", "h", projections, bias=qkv_bias)
    if head_norms:
        for part, column, count in (("q", 0, heads), ("k", heads * dim, kv_heads)):
            norm = make.vector(f"{name}.{part}_norm", f"{source}.self_attn.{part}_norm.weight")
            make.op("headnorm", "qkv", weights=(norm,), eps=shape.eps, column=column, heads=count)
    # q and k lie side by side, so one operation turns both
    make.op("rope", "qkv", ("rope",), column=0, heads=heads + kv_heads, head_dim=dim)
    make.op(
        "attention", "attended", ("qkv",), layer=layer, heads=heads, kv_heads=kv_heads, head_dim=dim, scale=dim**-0.5
    )
    make.linear(f"{name}.o", "x", "attended", (f"{source}.self_attn.o_proj",), bias=o_bias, accumulate=True)


def _mlp(make: _Builder, shape: Shape, layer: int, *, bias: bool) -> None:
    name, source = f"layers.{layer}", f"model.layers.{layer}"
    gain = make.vector(f"{name}.mlp_norm", f"{source}.post_attention_layernorm.weight")
    make.op("rmsnorm", "h", ("x",), (gain,), eps=shape.eps)
    modules = (f"{source}.mlp.gate_proj", f"{source}.mlp.up_proj")
    make.linear(f"{name}.gate_up", "gate_up", "h", modules, bias=bias)
    make.op("silu_mul", "gated", ("gate_up",))
    make.linear(f"{name}.down", "x", "gated", (f"{source}.mlp.down_proj",), bias=bias, accumulate=True)


def _head(make: _Builder, shape: Shape) -> None:
    make.op("gather", "last", ("x",))
    gain = make.vector("norm", "model.norm.weight")
    make.op("rmsnorm", "last_h", ("last",), (gain,), eps=shape.eps)
    source = "model.embed_tokens" if shape.tied else "lm_head"
    make.linear("lm_head", "logits", "last_h", (source,), bias=False)
