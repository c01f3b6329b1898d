"""The `quantization_config` that tells transformers, vLLM and our own reader how the weights are stored.

Keys and their meaning: compressed_tensors 0.20.0, quantization/quant_config.py, quant_scheme.py, quant_args.py.
Knows plans, not weights.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from freehold.compress.plan import Plan, Scheme, TensorPlan

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def quantization_config(plan: Plan) -> dict[str, Any]:
    """One config group for each grid in use; the commonest one of linear layers targets "Linear", others name layers.

    Layers named come before "Linear" does, as compressed-tensors takes the most specific match.
    """
    groups: dict[Scheme, list[TensorPlan]] = defaultdict(list)
    for tensor in plan.tensors:
        if tensor.scheme is not None:
            groups[tensor.scheme].append(tensor)
    packed = [scheme for scheme in groups if scheme.packed]
    common = max(packed, key=lambda scheme: len(groups[scheme]))
    ordered = [scheme for scheme in groups if scheme != common] + [common]
    config_groups = {}
    for number, scheme in enumerate(ordered):
        targets = _targets(groups[scheme], plan.tensors)
        if scheme == common:
            targets = ["Linear", *_tables(groups[scheme])]
        config_groups[f"group_{number}"] = _group(scheme, targets)
    formats = {group["format"] for group in config_groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": config_groups,
        "ignore": _ignored(plan.tensors),
    }


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    weights: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "dynamic": False,
    }
    if scheme.group_size is not None:
        weights["group_size"] = scheme.group_size
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": "pack-quantized" if scheme.packed else "int-quantized",
    }


def _targets(members: list[TensorPlan], every: Iterable[TensorPlan]) -> list[str]:
    """Module names; a regular expression where all layers that differ only in their number are members."""
    modules = {tensor.module for tensor in members}
    others = {_pattern(tensor.module) for tensor in every if tensor.module not in modules}
    targets = {module if _pattern(module) in others else _pattern(module) for module in modules}
    return sorted(targets | {tensor.tied for tensor in members if tensor.tied})


def _tables(members: list[TensorPlan]) -> list[str]:
    """Embeddings among them, which "Linear" does not match."""
    return sorted(tensor.module for tensor in members if tensor.role == "embedding")


def _pattern(module: str) -> str:
    if not _NUMBER.search(module):
        return module
    pieces = (re.escape(piece) for piece in _NUMBER.split(module))
    return "re:^" + r"\d+".join(pieces) + "$"


def _ignored(tensors: Iterable[TensorPlan]) -> list[str]:
    """Modules that "Linear" would match but which were kept."""
    ignored = []
    for tensor in tensors:
        if tensor.scheme is None and len(tensor.info.shape) == 2 and tensor.role != "embedding":
            ignored.append(tensor.module)
        if tensor.scheme is None and tensor.tied:
            ignored.append(tensor.tied)
    return ignored
