"""Checkpoints as files: tensors, tokenizers, chat templates and the model store.

Importing this package loads nothing heavy: each name is loaded on first use. It knows no kernels and no engine.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freehold.formats import store
    from freehold.formats.checkpoint import Checkpoint, open_checkpoint
    from freehold.formats.template import ChatTemplate
    from freehold.formats.tensors import QuantizedTensor, Tensor, TensorInfo
    from freehold.formats.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "ChatTemplate",
    "Checkpoint",
    "QuantizedTensor",
    "Tensor",
    "TensorInfo",
    "Tokenizer",
    "load_tokenizer",
    "open_checkpoint",
    "store",
]

_HOME = {
    "ChatTemplate": "template",
    "Checkpoint": "checkpoint",
    "QuantizedTensor": "tensors",
    "Tensor": "tensors",
    "TensorInfo": "tensors",
    "Tokenizer": "tokenizer",
    "load_tokenizer": "tokenizer",
    "open_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name == "store":
        return importlib.import_module("freehold.formats.store")
    if name in _HOME:
        return getattr(importlib.import_module(f"freehold.formats.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
