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
    def of(
        cls,
        config: Config,
        *,
        head_dim: int | None = None,
        tied: bool = False,
        activation: tuple[str, str] = ("hidden_act", "silu"),
        windowed: bool = False,
    ) -> Shape:
        """Sizes from config.json, each within bounds that no real model exceeds.

        Args:
            head_dim: the family's default where the config has none; None = hidden_size / num_attention_heads.
            tied: whether embeddings are shared where the config doesn't say.
            activation: the config's key, and the one value the family's program computes.
            windowed: the program has sliding windows where the model has them; else the context ends there.
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
            context=_context(config, windowed=windowed),
            eps=config.number("rms_norm_eps", high=1.0),
            tied=config.flag("tie_word_embeddings", default=tied),
        )
        if shape.parameters > MAX_PARAMETERS:
            raise FormatError(
                f"config.json: sizes multiply out to {shape.parameters} weights, more than {MAX_PARAMETERS}"
            )
        _refuse_other_arithmetic(config, *activation)
        return shape

    @property
    def parameters(self) -> int:
        """Weights of the matrices, roughly."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + 2 * self.vocabulary * self.hidden


def _context(config: Config, *, windowed: bool) -> int:
    """Longest sequence for which the program computes what the model was trained with."""
    context = config.integer("max_position_embeddings", high=1 << 27)
    if windowed:
        return context
    # Qwen configs name a window they don't use unless use_sliding_window says so; Mistral has no such switch
    used = not str(config.raw("model_type")).startswith("qwen")
    if config.has("sliding_window") and config.flag("use_sliding_window", default=used):
        context = min(context, config.integer("sliding_window", high=1 << 27))
    return context


def _refuse_other_arithmetic(config: Config, key: str, known: str) -> None:
    activation = config.text(key, default=known)
    if activation != known:
        raise UnsupportedError(f"config.json: {key} {activation[:80]!r} is not supported", hint=f"known: {known}")
    if config.number("partial_rotary_factor", default=1.0) != 1.0:
        raise UnsupportedError("config.json: partial_rotary_factor other than 1 is not supported")


@dataclass(frozen=True, slots=True)
class Traits:
    """What a family does its own way.

    Args:
        qkv_bias, o_bias, mlp_bias: projections with a bias.
        head_norms: RMSNorm over each head of q and k before RoPE.
        gated: the MLP's operation, "silu_mul" or "gelu_mul".
        gain_offset: added to the weights of all norms.
        sandwich: attention and MLP are normed behind too, before they are added to the residual stream.
        embedding_scale: what embeddings are multiplied with when they are looked up.
        query_scale: what scores are multiplied with; None = 1 / sqrt(head_dim).
        windows: for each layer how many tokens a query sees, itself included, 0 = all; () = all in every layer.
        window_rope: rotary settings of layers with a window where they have their own.
    """

    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    gated: str = "silu_mul"
    gain_offset: float = 0.0
    sandwich: bool = False
    embedding_scale: float = 1.0
    query_scale: float | None = None
    windows: tuple[int, ...] = ()
    window_rope: Config | None = None

    @property
    def branch(self) -> str:
        """Where attention and MLP leave their result: on the residual stream, or aside for a norm."""
        return "branch" if self.sandwich else "x"

    def window(self, layer: int) -> int:
        """The window of a layer; 0 = none."""
        return self.windows[layer] if self.windows else 0

    def rope(self, layer: int) -> str:
        """The buffer of the layer's rotary table."""
        return "window_rope" if self.window_rope is not None and self.window(layer) else "rope"


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

    def norm(
        self, out: str, x: str, name: str, source: str, shape: Shape, traits: Traits, *, add: bool = False
    ) -> None:
        """out (+)= RMSNorm of x, with its gain from the module `source`."""
        gain = self.vector(name, f"{source}.weight")
        attrs = {"eps": shape.eps, "offset": traits.gain_offset} | ({"accumulate": 1.0} if add else {})
        self.op("rmsnorm", out, (x,), (gain,), **attrs)

    def linear(
        self, name: str, out: str, x: str, modules: tuple[str, ...], *, bias: bool, accumulate: bool = False
    ) -> None:
        """out (+)= x @ W.T (+ bias), with the modules' weights stacked into one."""
        weights = [self.matrix(name, *(f"{module}.weight" for module in modules))]
        if bias:
            weights.append(self.vector(f"{name}.bias", *(f"{module}.bias" for module in modules)))
        self.op("linear", out, (x,), tuple(weights), accumulate=float(accumulate))


def decoder(architecture: str, config: Config, shape: Shape, traits: Traits) -> Program:
    """The program of a pre-norm decoder with grouped-query attention, RoPE and a gated MLP.

    Args:
        config: rotary settings are read from it.
    """
    make = _Builder()
    scale = traits.embedding_scale
    make.op("embed", "x", weights=(make.matrix("embed", "model.embed_tokens.weight"),), scale=scale)
    for suffix, settings in (("", config), ("window_", traits.window_rope)):
        if settings is not None:
            inverse, factor = frequencies(settings, shape.head_dim, shape.context)
            frequency = make.constant(f"{suffix}inv_freq", inverse)
            make.op("rope_table", f"{suffix}rope", weights=(frequency,), factor=factor)
    for layer in range(shape.layers):
        _attention(make, shape, traits, layer)
        _mlp(make, shape, traits, layer)
    _head(make, shape, traits)
    return Program(
        architecture=architecture,
        buffers=_buffers(shape, traits),
        ops=tuple(make.ops),
        weights=make.weights,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocabulary=shape.vocabulary,
        context=shape.context,
    )


def _buffers(shape: Shape, traits: Traits) -> Mapping[str, Buffer]:
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    window_rope = {"window_rope": Buffer(shape.head_dim)} if traits.window_rope is not None else {}
    branch = {"branch": Buffer(shape.hidden)} if traits.sandwich else {}
    return {
        "x": Buffer(shape.hidden),
        "h": Buffer(shape.hidden),
        "rope": Buffer(shape.head_dim),
        **window_rope,
        **branch,
        "qkv": Buffer(query + 2 * key),
        "attended": Buffer(query),
        "gate_up": Buffer(2 * shape.intermediate),
        "gated": Buffer(shape.intermediate),
        "last": Buffer(shape.hidden, "outputs"),
        "last_h": Buffer(shape.hidden, "outputs"),
        "logits": Buffer(shape.vocabulary, "outputs"),
    }


def _attention(make: _Builder, shape: Shape, traits: Traits, layer: int) -> None:
    name, source = f"layers.{layer}", f"model.layers.{layer}"
    heads, kv_heads, dim = shape.heads, shape.kv_heads, shape.head_dim
    make.norm("h", "x", f"{name}.attention_norm", f"{source}.input_layernorm", shape, traits)
    projections = tuple(f"{source}.self_attn.{part}_proj" for part in "qkv")
    make.linear(f"{name}.qkv", "qkv", "h", projections, bias=traits.qkv_bias)
    if traits.head_norms:
        for part, column, count in (("q", 0, heads), ("k", heads * dim, kv_heads)):
            norm = make.vector(f"{name}.{part}_norm", f"{source}.self_attn.{part}_norm.weight")
            attrs = {"eps": shape.eps, "offset": traits.gain_offset, "column": column, "heads": count}
            make.ops.append(Op("headnorm", "qkv", (), (norm,), attrs))
    # q and k lie side by side, so one operation turns both
    make.op("rope", "qkv", (traits.rope(layer),), column=0, heads=heads + kv_heads, head_dim=dim)
    scale = dim**-0.5 if traits.query_scale is None else traits.query_scale
    shape_of = {"layer": layer, "heads": heads, "kv_heads": kv_heads, "head_dim": dim}
    window = {"window": traits.window(layer)} if traits.window(layer) else {}
    make.ops.append(Op("attention", "attended", ("qkv",), (), {**shape_of, "scale": scale, **window}))
    add, modules = not traits.sandwich, (f"{source}.self_attn.o_proj",)
    make.linear(f"{name}.o", traits.branch, "attended", modules, bias=traits.o_bias, accumulate=add)
    if traits.sandwich:
        make.norm(
            "x", traits.branch, f"{name}.attended_norm", f"{source}.post_attention_layernorm", shape, traits, add=True
        )


def _mlp(make: _Builder, shape: Shape, traits: Traits, layer: int) -> None:
    name, source = f"layers.{layer}", f"model.layers.{layer}"
    before = "pre_feedforward_layernorm" if traits.sandwich else "post_attention_layernorm"
    make.norm("h", "x", f"{name}.mlp_norm", f"{source}.{before}", shape, traits)
    modules = (f"{source}.mlp.gate_proj", f"{source}.mlp.up_proj")
    make.linear(f"{name}.gate_up", "gate_up", "h", modules, bias=traits.mlp_bias)
    make.op(traits.gated, "gated", ("gate_up",))
    add, down = not traits.sandwich, (f"{source}.mlp.down_proj",)
    make.linear(f"{name}.down", traits.branch, "gated", down, bias=traits.mlp_bias, accumulate=add)
    if traits.sandwich:
        make.norm(
            "x", traits.branch, f"{name}.gated_norm", f"{source}.post_feedforward_layernorm", shape, traits, add=True
        )


def _head(make: _Builder, shape: Shape, traits: Traits) -> None:
    make.op("gather", "last", ("x",))
    make.norm("last_h", "last", "norm", "model.norm", shape, traits)
    source = "model.embed_tokens" if shape.tied else "lm_head"
    make.linear("lm_head", "logits", "last_h", (source,), bias=False)
