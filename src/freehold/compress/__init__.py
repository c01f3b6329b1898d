"""Compression: a checkpoint in, a smaller checkpoint and an honest report out.

    from freehold.compress import CompressOptions, compress
    report = compress(Path("model.gguf"), Path("model-int4"), CompressOptions(budget=4.5), statistics=calibration)

The result is a Hugging Face directory with a compressed-tensors `quantization_config`. The way: `planning` spends a
budget of bits by the costs that `sensitivity` measures (or `plan` decides by rule), `layout` fixes every byte's place,
`gptq` and `quantize` round, `retune` puts tuned scales in their places, `write` makes it resumable and atomic, `report`
says what was lost. Knows no kernels and no engine: they meet at files on disk.
"""

from freehold.compress.gguf import Exported, export_gguf
from freehold.compress.options import ANY, WIDTHS, CompressOptions
from freehold.compress.plan import Plan, Scheme, TensorPlan, make_plan
from freehold.compress.report import Report, TensorReport, by_kind
from freehold.compress.retune import Tuner
from freehold.compress.run import compress, plan_text
from freehold.compress.text import builtin_text
from freehold.compress.write import Destination

__all__ = [
    "ANY",
    "WIDTHS",
    "CompressOptions",
    "Destination",
    "Exported",
    "Plan",
    "Report",
    "Scheme",
    "TensorPlan",
    "TensorReport",
    "Tuner",
    "builtin_text",
    "by_kind",
    "compress",
    "export_gguf",
    "make_plan",
    "plan_text",
]
