"""From statistics and a budget to a plan: which formats are possible, what they take and cost, and what was chosen.

Knows tensors' shapes and costs; rounds nothing itself.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping

from freehold.compress.budget import Offer, spend
from freehold.compress.layout import lay_out, parts
from freehold.compress.options import ANY, GROUP_SIZES, CompressOptions
from freehold.compress.options import KEEP as KEEP_BITS
from freehold.compress.plan import Plan, Scheme, TensorPlan
from freehold.compress.planfile import KEEP, Decision, parse_scheme
from freehold.compress.sensitivity import Costs, measure
from freehold.compress.statistics import Group, Statistics
from freehold.errors import UsageError
from freehold.formats import Checkpoint
from freehold.progress import Progress

ROW_UNIT = 64
"""Columns of an activation group where a weight has one scale for a row (kernels.matrix.PER_CHANNEL_UNIT)."""
SPARE = 0.35
"""Bits for each weight above the smallest formats of 4 bits or more that `stretch` gives to spend: with an int8 embedding
that makes models of 0.1 to 1.5 billion weights 65% smaller than bf16 or more."""
GUARD = 2e-3
"""Nats that int8 activations may cost at one input before it is read in two passes: half of what all inputs of a small
model together lose without outliers."""
JOIN = " + "
"""Between the formats of a group's tensors where they differ."""
MOST_MIXED = 4
"""Tensors of a group up to which every mix of widths is tried."""
HEADER_SLACK = 16 << 10
"""Bytes that a header may grow by when tensors get other formats: a few hundred names and offsets."""


@dataclasses.dataclass(frozen=True, slots=True)
class Decided:
    """Decisions by tensor, and predicted (bits per weight, nats) of other budgets."""

    decisions: dict[str, Decision]
    curve: tuple[tuple[float, float], ...] = ()


def decide(
    checkpoint: Checkpoint,
    base: Plan,
    statistics: Statistics,
    options: CompressOptions,
    progress: Progress,
    threads: int = 1,
) -> Decided:
    """A format for every tensor that calibration has seen.

    Raises:
        UsageError: a budget below the smallest formats, or a uniform format that no layer can take.
    """
    tensors = {tensor.name: tensor for tensor in base.tensors}
    groups = {
        group.name: group
        for group in statistics.groups
        if all(name in tensors and tensors[name].role != "other" for name in group.tensors)
    }
    candidates = {name: _candidates(group, tensors, options) for name, group in groups.items()}
    costs = measure(checkpoint, statistics, candidates, progress, threads)
    offers = {
        name: _offers(groups[name], tensors, schemes, costs, fused=options.fused)
        for name, schemes in candidates.items()
    }
    if options.budget is None:
        chosen = {name: (given[0], "the one format asked for everything") for name, given in offers.items()}
    else:
        budget = _budget(base, groups.values(), options.budget)
        if options.stretch:
            parameters = sum(math.prod(tensor.info.shape) for tensor in base.tensors)
            budget = max(budget, sum(map(_least, offers.values())) + int(SPARE * parameters / 8))
        chosen = {name: (choice.offer, choice.reason) for name, choice in spend(offers, budget).items()}
    decisions = {
        tensor: Decision(parse_scheme(text), chosen[name][1], name, chosen[name][0].cost)
        for name, group in groups.items()
        for tensor, text in zip(group.tensors, _texts(chosen[name][0].text, group), strict=True)
    }
    return Decided(decisions, _curve(base, groups.values(), offers))


def _least(offers: list[Offer]) -> int:
    """Bytes of the smallest offer of 4 bits or more; 3 bits everywhere is not what anybody wants who names no size."""
    usual = [offer.bytes for offer in offers if offer.text != KEEP and "int3" not in offer.text]
    return min(usual or [offer.bytes for offer in offers])


def two_pass(plan: Plan, statistics: Statistics) -> tuple[dict[str, int], float]:
    """Modules to be read in two int8 passes with their activation group, and the nats that the others' rounding costs."""
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    marks: dict[str, int] = {}
    cost = 0.0
    for group in statistics.groups:
        schemes = [tensors[name].scheme for name in group.tensors if name in tensors]
        units = {s.group_size if s.group_size in GROUP_SIZES else ROW_UNIT for s in schemes if s is not None}
        if None in schemes or len(units) != 1:
            continue  # in 16 bits activations are not rounded; grids of several widths have no common pass
        unit = int(units.pop() or ROW_UNIT)
        if group.int8.get(unit, 0.0) > GUARD:
            marks |= {name.removesuffix(".weight"): unit for name in group.tensors}
        else:
            cost += group.int8.get(unit, 0.0)
    return marks, cost


def _curve(base: Plan, groups: Iterable[Group], offers: Mapping[str, list[Offer]]) -> tuple[tuple[float, float], ...]:
    """What budgets from the smallest to 8 bits would lead to."""
    groups = list(groups)
    parameters = sum(math.prod(tensor.info.shape) for tensor in base.tensors)
    smallest = sum(min(offer.bytes for offer in given) for given in offers.values())
    points = []
    for bits in (4.2, 4.25, 4.35, 4.5, 4.625, 4.75, 5.0, 5.25, 5.5, 6.0, 7.0, 8.0):
        budget = _budget(base, groups, bits)
        if budget < smallest:
            continue
        chosen = spend(offers, budget).values()
        spent = sum(choice.offer.bytes for choice in chosen)
        cost = sum(choice.offer.cost for choice in chosen)
        points.append((bits - 8 * (budget - spent) / parameters, cost))
    return tuple(points)


def applied(base: Plan, decisions: Mapping[str, Decision]) -> Plan:
    """The plan with other formats for the tensors named.

    Raises:
        UsageError: a tensor that isn't there, can't be quantized, or whose width the group size does not divide.
    """
    known = {tensor.name: tensor for tensor in base.tensors}
    for name, decision in decisions.items():
        if name not in known:
            raise UsageError(f"the plan names {name[:100]}, which the model has not")
        scheme, tensor = decision.scheme, known[name]
        if scheme is None:
            continue
        if tensor.role == "other":
            raise UsageError(f"the plan quantizes {name}, which is kept: {tensor.reason}")
        if scheme.group_size is not None and tensor.info.shape[1] % scheme.group_size:
            raise UsageError(
                f"the plan gives {name} groups of {scheme.group_size}, its width is {tensor.info.shape[1]}"
            )
    made = tuple(_with(tensor, decisions.get(tensor.name)) for tensor in base.tensors)
    return dataclasses.replace(base, tensors=made, warnings=base.warnings + _limits(made))


def _limits(tensors: Iterable[TensorPlan]) -> tuple[str, ...]:
    """Who can't load what was planned, as tried with transformers 5.23 and compressed-tensors 0.20."""
    warnings = []
    schemes = [(tensor, tensor.scheme) for tensor in tensors if tensor.scheme is not None]
    if any(tensor.tied and scheme.packed for tensor, scheme in schemes):
        warnings.append(
            "transformers can't load an embedding of less than 8 bits that is shared with the output layer: for it use "
            "--embedding-bits 8; llama.cpp loads --gguf"
        )
    between = sorted({scheme.bits for _, scheme in schemes} - {4, 8})
    if between:
        widths = ", ".join(map(str, between))
        warnings.append(
            f"layers of {widths} bits: transformers needs compressed-tensors 0.20 for them, vLLM has none, and the engine "
            "keeps 3 bits as 4 and 5 and 6 as 8 in memory; --widths 4,8 leaves them out"
        )
    if any(not scheme.symmetric for _, scheme in schemes):
        warnings.append("transformers can't load zero points of packed layers: for it leave out --asymmetric")
    return tuple(warnings)


def _with(tensor: TensorPlan, decision: Decision | None) -> TensorPlan:
    if decision is None:
        return tensor
    tensor = dataclasses.replace(tensor, reason=decision.reason, group=decision.group, cost=decision.cost)
    if decision.scheme is None:
        dtype = tensor.dtype or ("F16" if tensor.info.dtype == "F16" else "BF16")
        return dataclasses.replace(tensor, scheme=None, dtype=dtype)
    scheme = _stored_as(tensor, decision.scheme)
    return dataclasses.replace(tensor, scheme=scheme, dtype="")


def _stored_as(tensor: TensorPlan, scheme: Scheme) -> Scheme:
    """Embeddings of 8 bits are plain int8, which transformers can tie and look up."""
    wide = tensor.role != "linear" and scheme.bits == 8
    return dataclasses.replace(scheme, packed=not wide)


def _candidates(group: Group, tensors: Mapping[str, TensorPlan], options: CompressOptions) -> list[Scheme]:
    """From what the options allow, what all the group's widths can take."""
    columns = tensors[group.tensors[0]].info.shape[1]
    embedding = options.embedding_bits if any(tensors[name].role == "embedding" for name in group.tensors) else ANY
    if embedding == KEEP_BITS:
        return []
    if embedding == 8:
        return [Scheme(8, None, symmetric=True, packed=True)]
    if options.uniform is not None:
        wanted = parse_scheme(options.uniform)
        if wanted is None:
            raise UsageError("expected a uniform format of 3 to 8 bits, found bf16")
        return [_fitting(wanted, columns)]
    fitting = [size for size in GROUP_SIZES if columns % size == 0]
    widths = options.widths if embedding == ANY else (embedding,)
    narrow = [bits for bits in widths if bits < 8]
    found = [Scheme(bits, size, symmetric=True, packed=True) for bits in narrow for size in fitting]
    if not options.symmetric:
        found += [Scheme(bits, size, symmetric=False, packed=True) for bits in narrow if bits <= 4 for size in fitting]
    return [*found, *([Scheme(8, None, symmetric=True, packed=True)] if 8 in widths or not found else [])]


def _fitting(scheme: Scheme, columns: int) -> Scheme:
    """The scheme with the largest group up to its own that divides the width; 8 bits a row where none does."""
    if scheme.group_size is None:
        return scheme
    sizes = [size for size in GROUP_SIZES if size <= scheme.group_size and columns % size == 0]
    return dataclasses.replace(scheme, group_size=max(sizes)) if sizes else Scheme(8, None, symmetric=True, packed=True)


def _offers(
    group: Group, tensors: Mapping[str, TensorPlan], schemes: list[Scheme], costs: Costs, *, fused: bool
) -> list[Offer]:
    """Every scheme for all of a group's tensors; unless `fused`, also other widths for each on a common group size.

    With a common group size the activations are rounded once for all of them.
    """

    def offer(mix: tuple[Scheme | None, ...]) -> Offer:
        pairs = list(zip(group.tensors, mix, strict=True))
        size = sum(_size(_with(tensors[name], Decision(scheme, ""))) for name, scheme in pairs)
        cost = sum(costs[name][scheme.text] for name, scheme in pairs if scheme is not None)
        texts = [KEEP if scheme is None else scheme.text for scheme in mix]
        return Offer(texts[0] if len(set(texts)) == 1 else JOIN.join(texts), size, cost)

    count = len(group.tensors)
    mixes: list[tuple[Scheme | None, ...]] = [(scheme,) * count for scheme in [*schemes, None]]
    if 1 < count <= MOST_MIXED and not fused:
        for size in GROUP_SIZES:
            given = [s for s in schemes if (s.group_size or ROW_UNIT) == size]
            mixes += [mix for mix in itertools.product(given, repeat=count) if len(set(mix)) > 1]
    return [offer(mix) for mix in mixes]


def _texts(text: str, group: Group) -> list[str]:
    """An offer's formats, tensor by tensor."""
    return text.split(JOIN) if JOIN in text else [text] * len(group.tensors)


def _size(tensor: TensorPlan) -> int:
    return sum(part.nbytes for part in parts(tensor))


def _budget(base: Plan, groups: Iterable[Group], bits: float) -> int:
    """Bytes left for the groups' tensors once everything else and the files' headers are paid for."""
    planned = {name for group in groups for name in group.tensors}
    parameters = sum(math.prod(tensor.info.shape) for tensor in base.tensors)
    fixed = sum(_size(tensor) for tensor in base.tensors if tensor.name not in planned)
    headers = sum(len(shard.header) for shard in lay_out(base.tensors).shards)
    return int(bits * parameters / 8) - fixed - headers - HEADER_SLACK
