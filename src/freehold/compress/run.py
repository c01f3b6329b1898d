"""The whole of it: plan, quantize tensor by tensor in row blocks, write, report.

Memory: one source tensor as it is stored, for each thread a few blocks of float32 rows and, with statistics, the second
moment of one input.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold import __version__
from freehold.compress.companions import Lineage, lineage, model_card, write_companions
from freehold.compress.gptq import gptq
from freehold.compress.kept import KEPT_BUT_TUNED, keep_grids, zero_points
from freehold.compress.layout import Layout, lay_out
from freehold.compress.options import CompressOptions
from freehold.compress.pack import pack_columns, pack_rows, signed
from freehold.compress.page import PAGE, page
from freehold.compress.plan import Plan, Scheme, TensorPlan, make_plan
from freehold.compress.planfile import Decision, format_plan, read_plan
from freehold.compress.planning import applied, decide, two_pass
from freehold.compress.quantize import Quantized, quantize
from freehold.compress.report import Report, TensorReport
from freehold.compress.retune import Tuner, retune
from freehold.compress.statistics import Statistics
from freehold.compress.values import rows_of, stored_values
from freehold.compress.write import REPORT, Destination, TensorWriter
from freehold.errors import FormatError, UsageError
from freehold.formats import Checkpoint, QuantizedTensor, Tensor, open_checkpoint
from freehold.formats.digest import digest
from freehold.formats.tensors import to_float32
from freehold.process_memory import peak_resident_bytes
from freehold.progress import Progress, silent

ALGORITHM = 4
"""Raised whenever the same source and options would give other bytes: unfinished work of another version is dropped."""
BLOCK = 1 << 17  # weights searched at a time: the handful of float32 arrays of this size stay in the L2 cache
GPTQ_ROWS = 8192  # columns are done one by one: long ones, so that Python is not what takes the time
ROW_MULTIPLE = 8
MAX_THREADS = 8

CALIBRATED = (
    "GPTQ, heaviest columns first, with a scale per group from a search weighted by second-order sensitivities, then two "
    "sweeps that refit scales and codes; second moments of inputs weighted, for each tensor, by the gradient of the KL "
    "divergence on a calibration text; 8-bit tensors to nearest; scales are bfloat16"
)
METHOD = (
    "round to nearest with a scale per group, found without calibration data by trying several scales, refitting each "
    "by least squares and keeping the one with the least squared error; scales are bfloat16"
)


def compress(
    source: Path,
    out: Path,
    options: CompressOptions | None = None,
    progress: Progress | None = None,
    *,
    statistics: Path | None = None,
    plan: Path | None = None,
    tuner: Tuner | None = None,
) -> Report:
    """Compress the checkpoint at `source` into a new Hugging Face directory `out`.

    Args:
        statistics: a finished calibration (`engine.calibrate`); rounding then makes up for itself, and a budget or a
            uniform format is planned by measured cost. None = round to nearest.
        plan: a plan file to follow instead of planning.
        tuner: tunes the rounded model's scales (`engine.tune`) before it gets its name; None = they stay as rounded.

    Work that was cut off (`out.partial`) is taken up again when source and options are the same; the weights are then
    byte for byte those of an uninterrupted run.

    Raises:
        UsageError: `out` exists, or lies around the source.
        FormatError, UnsupportedError: the source is damaged, or nothing we can compress; nothing is left behind.
        FreeholdError: the disk is full or another run writes there; finished work stays in `out.partial`.
    """
    started = time.monotonic()
    options, progress = options or CompressOptions(), progress or silent
    source, out = Path(source), Path(out)
    _check_apart(source, out)
    with open_checkpoint(source) as checkpoint, Destination(out, overwrite=options.overwrite) as destination:
        sha256 = digest(source, lambda done, total: progress(done, total, "reading source"))
        seen = Statistics(statistics, sha256) if statistics else None
        made = _planned(checkpoint, options, seen, plan, progress)
        layout = lay_out(made.tensors)
        destination.begin(_fingerprint(sha256, options, layout, seen), layout)
        resumed = len(destination.done)
        _quantize_all(checkpoint, made, destination, seen, _threads(options), progress)
        marks, rounding = two_pass(made, seen) if seen else ({}, None)
        warnings = made.warnings + write_companions(source, checkpoint.config, made, destination, marks)
        if layout.index is not None:
            destination.write_file("model.safetensors.index.json", json.dumps(layout.index, indent=2).encode())
        tuning = retune(checkpoint, made, destination, tuner) if tuner else None
        report = _report(source, sha256, lineage(source), options, made, layout, destination, warnings, resumed)
        if seen is not None:
            report = dataclasses.replace(
                report,
                method=CALIBRATED,
                calibration=seen.facts,
                predicted_kld=_predicted(made),
                curve=made.curve,
                two_pass=marks,
                activation_kld=rounding,
            )
        report = _timed(dataclasses.replace(report, tuning=tuning), started)
        destination.write_file("README.md", model_card(report).encode())
        destination.write_file(REPORT, report.to_json().encode())
        destination.write_file(PAGE, page(report).encode())
        destination.finish()
    return report


def plan_text(
    source: Path, options: CompressOptions, progress: Progress | None = None, *, statistics: Path | None = None
) -> str:
    """The plan file that `compress` would follow, with a reason for every group; nothing is written.

    Raises:
        UsageError: a budget that can't be met, or no statistics for it.
    """
    progress = progress or silent
    with open_checkpoint(source) as checkpoint:
        seen = Statistics(statistics, digest(source)) if statistics else None
        made = _planned(checkpoint, options, seen, None, progress)
        decisions = {t.name: Decision(t.scheme, t.reason, t.group or t.name) for t in made.tensors if t.role != "other"}
    size = sum(shard.size for shard in lay_out(made.tensors).shards)
    bits = 8 * size / sum(math.prod(tensor.info.shape) for tensor in made.tensors)
    heading = f"{source.absolute().name}: {size:,} bytes, {bits:.3f} bits a weight"
    return format_plan(decisions, heading + (f", predicted to cost {_predicted(made):.4f} nats" if seen else ""))


def _planned(
    checkpoint: Checkpoint, options: CompressOptions, seen: Statistics | None, plan: Path | None, progress: Progress
) -> Plan:
    made = _decided(checkpoint, options, seen, plan, progress)
    named = plan is not None or options.uniform is not None  # formats that somebody asked for by name
    return keep_grids(made, checkpoint.load, choose=not named, symmetric=options.symmetric)


def _decided(
    checkpoint: Checkpoint, options: CompressOptions, seen: Statistics | None, plan: Path | None, progress: Progress
) -> Plan:
    base = make_plan(checkpoint, options)
    if plan is not None:
        return applied(base, read_plan(plan))
    if options.budget is None and options.uniform is None:
        return base
    if seen is None:
        raise UsageError("a budget of bits is spent by measured cost", hint="calibrate first")
    decided = decide(checkpoint, base, seen, options, progress, _threads(options))
    return dataclasses.replace(applied(base, decided.decisions), curve=decided.curve)


def _predicted(plan: Plan) -> float:
    """The groups' costs, each once."""
    return sum({tensor.group: tensor.cost for tensor in plan.tensors if tensor.cost is not None}.values())


def _quantize_all(
    checkpoint: Checkpoint,
    plan: Plan,
    destination: Destination,
    seen: Statistics | None,
    threads: int,
    progress: Progress,
) -> None:
    total = sum(tensor.info.nbytes for tensor in plan.tensors)
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        for tensor in _in_order(plan, seen):
            progress(done, total, "compressing")
            if tensor.name not in destination.done:
                facts = _one(checkpoint, tensor, destination.tensor(tensor.name), seen, pool)
                destination.note(tensor.name, facts)
            done += tensor.info.nbytes
    progress(done, total, "compressing")


def _in_order(plan: Plan, seen: Statistics | None) -> list[TensorPlan]:
    """Tensors of one input together: they share a matrix that is dear to make and large to keep."""
    place = {group.name: number for number, group in enumerate(seen.groups)} if seen else {}

    def key(tensor: TensorPlan) -> int:
        group = seen.by_tensor.get(tensor.name) if seen else None
        return place[group.name] if group else -1

    return sorted(plan.tensors, key=key)


def _one(
    checkpoint: Checkpoint, tensor: TensorPlan, writer: TensorWriter, seen: Statistics | None, pool: ThreadPoolExecutor
) -> dict[str, float]:
    """Write one tensor; returns its squared error and norm."""
    loaded = checkpoint.load(tensor.name)
    if loaded.shape != tensor.info.shape:
        raise FormatError(
            f"{checkpoint.path}: expected {tensor.name} to be {list(tensor.info.shape)}, found {list(loaded.shape)}"
        )
    try:
        grid = tensor.scheme
        calibrated = seen if seen is not None and tensor.name in seen.by_tensor else None
        facts = _grid(loaded, tensor, grid, writer, calibrated, pool) if grid else _keep(loaded, tensor, writer)
    except FormatError as error:
        raise FormatError(f"{checkpoint.path}: {tensor.name}: {error.message}", hint=error.hint) from error
    writer.check()
    return facts


def _grid(
    loaded: Tensor,
    tensor: TensorPlan,
    scheme: Scheme,
    writer: TensorWriter,
    seen: Statistics | None,
    pool: ThreadPoolExecutor,
) -> dict[str, float]:
    group = scheme.group_size or tensor.info.shape[1]
    by_cost = seen is not None and scheme.bits < 8  # at 8 bits there is nothing left to make up for
    same = loaded if isinstance(loaded, QuantizedTensor) and tensor.scale_dtype else None
    moment = seen.curvature(tensor.name) if seen is not None and by_cost and same is None else None
    same_zeros = zero_points(same) if same is not None else None

    def search(rows: slice) -> Quantized:
        weights = rows_of(loaded, rows)
        if same is not None:
            norm = float(np.sum(weights * weights, dtype=np.float64))
            points = None if same_zeros is None else same_zeros[rows]
            return Quantized(same.codes[rows], same.scales[rows], points, squared_error=0.0, squared_norm=norm)
        if moment is not None:
            return gptq(weights, moment, scheme.bits, group, symmetric=scheme.symmetric)
        return quantize(weights, scheme.bits, group, symmetric=scheme.symmetric)

    scales, zeros, error, norm = [], [], 0.0, 0.0
    for block in pool.map(search, _blocks(tensor.info.shape, by_cost=by_cost)):
        writer.put("codes", _stored_codes(block.codes, scheme))
        scales.append(stored_values(block.scales, tensor.scale_dtype or "BF16")[0])
        if block.zeros is not None:
            zeros.append(block.zeros)
        error, norm = error + block.squared_error, norm + block.squared_norm
    stored_scales = b"".join(scales)
    writer.put("scales", stored_scales)
    if zeros:
        writer.put("zeros", pack_columns(np.concatenate(zeros), scheme.bits).tobytes())
    if scheme.packed:
        writer.put("shape", np.array(tensor.info.shape, "<i8").tobytes())
    if tensor.tied and not scheme.packed:
        writer.put("tied_scales", stored_scales)
    return {"squared_error": error, "squared_norm": norm}


def _stored_codes(codes: NDArray[np.uint8], scheme: Scheme) -> bytes:
    return pack_rows(codes, scheme.bits).tobytes() if scheme.packed else signed(codes).tobytes()


def _keep(loaded: Tensor, tensor: TensorPlan, writer: TensorWriter) -> dict[str, float]:
    error = norm = 0.0
    for rows in _row_blocks(tensor.info.shape):
        values = rows_of(loaded, rows) if tensor.info.shape else to_float32(loaded)
        if not np.isfinite(values).all():
            raise FormatError("expected finite values, found NaN or infinity")
        data, stored = stored_values(values, tensor.dtype)
        writer.put("values", data)
        with np.errstate(over="ignore"):
            error += float(np.sum((values - stored) ** 2, dtype=np.float64))
            norm += float(np.sum(values**2, dtype=np.float64))
    return {"squared_error": error, "squared_norm": norm}


def _blocks(shape: tuple[int, ...], *, by_cost: bool) -> Iterator[slice]:
    """Row blocks: short ones for rounding to nearest, for GPTQ long ones, but two to a matrix whatever the threads.

    Matrix products of other shapes may differ in the last bit: the result must not depend on how many threads there are.
    """
    if not by_cost:
        return _row_blocks(shape)
    return _row_blocks(shape, min(GPTQ_ROWS, max(-(-shape[0] // 2), ROW_MULTIPLE)) * shape[1])


def _row_blocks(shape: tuple[int, ...], block: int = BLOCK) -> Iterator[slice]:
    """Rows in slices of about `block` values, a multiple of eight rows each so that packed columns never straddle two."""
    rows, width = (shape[0], max(1, math.prod(shape[1:]))) if shape else (1, 1)
    step = max(ROW_MULTIPLE, block // width // ROW_MULTIPLE * ROW_MULTIPLE)
    for begin in range(0, rows, step):
        yield slice(begin, min(rows, begin + step))


def _report(
    source: Path,
    sha256: str,
    origin: Lineage,
    options: CompressOptions,
    plan: Plan,
    layout: Layout,
    destination: Destination,
    warnings: tuple[str, ...],
    resumed: int,
) -> Report:
    tensors = tuple(_tensor_report(tensor, layout, destination.done[tensor.name]) for tensor in plan.tensors)
    quantized = [tensor for tensor in plan.tensors if tensor.scheme is not None]
    error = sum(destination.done[tensor.name]["squared_error"] for tensor in quantized)
    norm = sum(destination.done[tensor.name]["squared_norm"] for tensor in quantized)
    worst = max(tensors, key=lambda tensor: tensor.relative_error)
    parameters = sum(math.prod(tensor.info.shape) for tensor in plan.tensors)
    size = sum(shard.size for shard in layout.shards)
    return Report(
        source=source.absolute().name,
        source_sha256=sha256,
        source_name=origin.name,
        source_licence=origin.licence,
        source_base=origin.base,
        options=options.fingerprint(),
        method=METHOD,
        parameters=parameters,
        source_bytes=sum(tensor.info.nbytes for tensor in plan.tensors),
        bytes=size,
        bf16_bytes=2 * parameters,
        smaller_than_bf16=1 - size / (2 * parameters),
        bits_per_weight=8 * size / parameters,
        error_mean=_relative(error, norm),
        error_max=worst.relative_error,
        error_max_tensor=worst.name,
        tensors=tensors,
        warnings=warnings,
        seconds=0.0,
        peak_rss_bytes=0,
        resumed_tensors=resumed,
        version=__version__,
    )


def _tensor_report(tensor: TensorPlan, layout: Layout, facts: dict[str, Any]) -> TensorReport:
    kept, tuned = tensor.scheme is not None and tensor.scale_dtype != "", bool(facts.get("tuned"))
    return TensorReport(
        name=tensor.name,
        role=tensor.role,
        shape=tensor.info.shape,
        source_dtype=tensor.info.dtype,
        stored=tensor.dtype if tensor.scheme is None else tensor.scheme.text,
        source_bytes=tensor.info.nbytes,
        bytes=sum(slot.part.nbytes for slot in layout.slots[tensor.name].values()),
        relative_error=_relative(facts["squared_error"], facts["squared_norm"]),
        reason=KEPT_BUT_TUNED if kept and tuned else tensor.reason,
        group=tensor.group,
        cost=tensor.cost,
        unrounded=kept and not tuned,
    )


def _relative(error: float, norm: float) -> float:
    return math.sqrt(error / norm) if norm > 0 else 0.0


def _timed(report: Report, started: float) -> Report:
    return dataclasses.replace(report, seconds=time.monotonic() - started, peak_rss_bytes=peak_resident_bytes())


def _fingerprint(sha256: str, options: CompressOptions, layout: Layout, seen: Statistics | None) -> dict[str, Any]:
    headers = hashlib.sha256(b"".join(shard.header for shard in layout.shards)).hexdigest()
    # The plan needs no mention: the headers give every tensor's format.
    calibration = {key: seen.facts[key] for key in ("text", "tokens", "window")} if seen else None
    return {
        "algorithm": ALGORITHM,
        "source": sha256,
        "options": options.fingerprint(),
        "headers": headers,
        "calibration": calibration,
    }


def _check_apart(source: Path, out: Path) -> None:
    inside, around = source.resolve(), out.resolve()
    if around == inside or around in inside.parents:
        raise UsageError(f"{out} holds the source {source}", hint="choose another --out")


def _threads(options: CompressOptions) -> int:
    return options.threads or min(MAX_THREADS, len(os.sched_getaffinity(0)))
