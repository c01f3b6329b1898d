"""Gemma 3, its text models (arXiv 2503.19786): five layers that see a window to one that sees everything.

Norms add 1 to their weights and stand before and behind attention and MLP; embeddings are scaled by sqrt(hidden size);
layers with a window have rotary frequencies of their own. Key names and defaults: transformers' Gemma3TextConfig.
"""

from __future__ import annotations

from freehold.engine.models.config import Config
from freehold.engine.models.decoder import Shape, Traits, decoder
from freehold.errors import FormatError, UnsupportedError
from freehold.kernels.program import Program

WINDOWED, FULL = "sliding_attention", "full_attention"
PATTERN = 6
"""One layer in so many sees everything."""


def build(config: Config) -> Program:
    """The program of a Gemma 3 text model.

    Raises:
        UnsupportedError: softcapped scores or attention in both directions, which no published text model has.
    """
    activation = ("hidden_activation", "gelu_pytorch_tanh")
    shape = Shape.of(config, head_dim=256, tied=True, activation=activation, windowed=True)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.has(key):
            raise UnsupportedError(f"config.json: {key} is not supported")
    if config.flag("use_bidirectional_attention", default=False):
        raise UnsupportedError("config.json: use_bidirectional_attention is not supported", hint="an embedding model?")
    bias = config.flag("attention_bias", default=False)
    traits = Traits(
        qkv_bias=bias,
        o_bias=bias,
        head_norms=True,
        gated="gelu_mul",
        gain_offset=1.0,
        sandwich=True,
        embedding_scale=shape.hidden**0.5,
        query_scale=config.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        windows=_windows(config, shape.layers),
        window_rope=_rope(config, WINDOWED, "rope_local_base_freq", 1e4),
    )
    return decoder("gemma3", _rope(config, FULL, "rope_theta", 1e6), shape, traits)


def _windows(config: Config, layers: int) -> tuple[int, ...]:
    """The window of each layer, 0 = none."""
    kinds = config.raw("layer_types")
    if kinds is None:
        pattern = config.integer("sliding_window_pattern", default=PATTERN, high=1 << 10)
        kinds = [WINDOWED if (layer + 1) % pattern else FULL for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in (WINDOWED, FULL) for kind in kinds):
        raise FormatError(
            f"config.json: layer_types must name one of {WINDOWED}, {FULL} for each of {layers} layers, "
            f"found {kinds!r:.80}"
        )
    window = config.integer("sliding_window", high=1 << 27) if WINDOWED in kinds else 0
    return tuple(window if kind == WINDOWED else 0 for kind in kinds)


def _rope(config: Config, kind: str, old_key: str, base: float) -> Config:
    """Rotary settings of one kind of layer, as `rope.frequencies` reads them; scaling is the full layers' alone."""
    nested = config.table("rope_parameters")
    own = nested.table(kind) if nested is not None else None
    if nested is not None and own is not None:
        theta, scaling = own.number("rope_theta", default=base, low=1.0), nested.raw(kind)
    else:
        theta = config.number(old_key, default=base, low=1.0)
        scaling = config.raw("rope_scaling") if kind == FULL else None
    return Config({"rope_theta": theta, "rope_scaling": scaling})
