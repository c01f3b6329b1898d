"""Compression: a checkpoint in, a smaller checkpoint and an honest report out.

    from freehold.compress import CompressOptions, compress
    report = compress(Path("model.gguf"), Path("model-int4"), CompressOptions(bits=4, group_size=32))

The result is a Hugging Face directory with a compressed-tensors `quantization_config`. The way: `plan` decides for each
tensor (no data read), `layout` fixes every byte's place, `quantize` searches scales, `write` makes it resumable and
atomic, `report` says what was lost. Knows no kernels and no engine: they meet at files on disk.
"""

from freehold.compress.options import CompressOptions, Progress
from freehold.compress.plan import Plan, Scheme, TensorPlan, make_plan
from freehold.compress.report import Report, TensorReport, by_kind
from freehold.compress.run import compress

__all__ = [
    "CompressOptions",
    "Plan",
    "Progress",
    "Report",
    "Scheme",
    "TensorPlan",
    "TensorReport",
    "by_kind",
    "compress",
    "make_plan",
]
