"""What a model's makers recommend for sampling. Knows files only; who asks for what is the backend's business.

`generation_config.json` is transformers' file. As in vLLM, its sampling values hold where a client says nothing, and its
`do_sample` is not honoured: a client that wants greedy text says temperature 0.
"""

from __future__ import annotations

import logging
from pathlib import Path

from freehold.engine.request import Sampling
from freehold.errors import FormatError, UsageError
from freehold.formats.reading import read_json

NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
log = logging.getLogger("freehold.gateway")


def recommended(model: Path) -> dict[str, float]:
    """Sampling values by the engine's names, of a model directory or of the directory a .gguf file lies in.

    Values the engine would refuse are left out with a warning: they are no reason not to serve the model.
    """
    file = (model if model.is_dir() else model.parent) / "generation_config.json"
    if not file.is_file():
        return {}
    try:
        config = read_json(file, "generation config")
    except FormatError as error:
        log.warning("the model's recommended sampling is not used: %s", error.message)
        return {}
    found: dict[str, float] = {}
    for name in NAMES:
        value = config.get(name)
        if value is None:
            continue
        try:
            if isinstance(value, bool) or not isinstance(value, int if name == "top_k" else int | float):
                raise UsageError(f"{name} must be a number, got {value!r}")
            Sampling(**{name: value})  # type: ignore[arg-type]
        except UsageError as error:
            log.warning("a recommendation of the model is not used: %s", error.message)
        else:
            found[name] = value
    return found
