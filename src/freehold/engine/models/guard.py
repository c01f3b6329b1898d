"""The outlier guard: linears whose inputs int8 can't hold are read twice, what the first pass lost in a second.

Compression marks such layers in config.json (`freehold.two_pass`). An int8 pass keeps 1/254 of a group's largest value;
the second pass rounds what was lost, which leaves 1/254 of that. Weights are read twice, so only marked layers pay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from freehold.kernels.program import Buffer, Op, Program


def guarded(program: Program, marks: Mapping[str, int]) -> Program:
    """The program with each linear that reads a marked module's weight followed by a pass over what int8 lost.

    Args:
        marks: Hugging Face module names and the columns that share an activation scale there.
    """
    if not marks:
        return program
    ops: list[Op] = []
    buffers = dict(program.buffers)
    for op in program.ops:
        ops.append(op)
        sources = program.weights[op.weights[0]].sources if op.kind == "linear" else ()
        units = [marks[name.removesuffix(".weight")] for name in sources if name.removesuffix(".weight") in marks]
        if units:
            source = op.inputs[0]
            lost = f"{source}.lost"
            buffers[lost] = Buffer(buffers[source].columns, buffers[source].rows)
            ops.append(Op("residual", lost, (source,), (), {"unit": units[0]}))
            again = {**op.attrs, "accumulate": 1.0}
            ops.append(dataclasses.replace(op, inputs=(lost,), weights=op.weights[:1], attrs=again))
    return dataclasses.replace(program, ops=tuple(ops), buffers=buffers)
