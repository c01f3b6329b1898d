"""Token ids in, token ids out: models as programs, continuous batching, paged KV, sampling, a process of its own.

The public face, loaded on first use; `evaluate` and `bench` are found in the modules of those names. This room knows
no HTTP and no text.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freehold.engine.process import EngineProcess
    from freehold.engine.request import EngineStats, GenerateRequest, ModelFacts, Sampling, TokenOutput
    from freehold.engine.runner import Engine

__all__ = [
    "Engine",
    "EngineProcess",
    "EngineStats",
    "GenerateRequest",
    "ModelFacts",
    "Sampling",
    "TokenOutput",
]

_HOME = {
    "Engine": "runner",
    "EngineProcess": "process",
    "EngineStats": "request",
    "GenerateRequest": "request",
    "ModelFacts": "request",
    "Sampling": "request",
    "TokenOutput": "request",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"freehold.engine.{_HOME[name]}"), name)
    globals()[name] = found
    return found
