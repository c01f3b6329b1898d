"""Model families: a config.json in, a `Program` out. One short file each, imported only when its model is loaded.

This package knows no checkpoint files, weights' values or schedulers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from freehold.engine.models.config import Config
from freehold.engine.models.guard import guarded
from freehold.errors import FormatError, UnsupportedError
from freehold.kernels.program import Program

# architecture (config.json "architectures") -> module and function
FAMILIES: Mapping[str, str] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
}
MODEL_TYPES: Mapping[str, str] = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
}


def program_for(config: Mapping[str, Any], *, guard: bool = True) -> Program:
    """The program of a model, from its config.json.

    Args:
        guard: obey the marks of `models.guard`; False where activations are not rounded to int8 anyway.

    Raises:
        UnsupportedError: an architecture or option this version can't run; names it and the known ones.
        FormatError: a key is missing or has an impossible value; names it.
    """
    module = import_module(f"freehold.engine.models.{_family(config)}")
    build: Callable[[Config], Program] = module.build
    return guarded(build(Config(config)), _guards(config) if guard else {})


def _guards(config: Mapping[str, Any]) -> dict[str, int]:
    """Modules whose inputs are read in two passes, and the columns that share an activation scale there."""
    ours = config.get("freehold")
    marks = ours.get("two_pass") if isinstance(ours, Mapping) else None
    if marks is None:
        return {}
    good = isinstance(marks, Mapping) and all(type(unit) is int and unit in (32, 64, 128) for unit in marks.values())
    if not good:
        raise FormatError(f"config.json: freehold: two_pass must map modules to 32, 64 or 128, found {marks!r:.80}")
    return dict(marks)


def _family(config: Mapping[str, Any]) -> str:
    architectures, model_type = config.get("architectures"), config.get("model_type")
    named = architectures if isinstance(architectures, list) else []
    for name in named:
        if isinstance(name, str) and name in FAMILIES:
            return FAMILIES[name]
    if not named and isinstance(model_type, str) and model_type in MODEL_TYPES:
        return MODEL_TYPES[model_type]
    if not named and model_type is None:
        raise FormatError("config.json names no model: it lacks both architectures and model_type")
    unknown = ", ".join(str(name)[:80] for name in named[:3]) or str(model_type)[:80]
    raise UnsupportedError(
        f"architecture {unknown} is not one this version can run", hint="known architectures: " + ", ".join(FAMILIES)
    )
