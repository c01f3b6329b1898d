"""Kernels: the instruction set a model is written in, and what runs it.

`make_executor` is the one way to get something that runs a program. Importing this package loads neither NumPy nor
the native module.
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from freehold.kernels.executor import Executor, PackedMatrix
    from freehold.kernels.matrix import Matrix
    from freehold.kernels.program import Program
    from freehold.kernels.reference import ReferenceExecutor


def make_executor(
    program: Program,
    weights: Mapping[str, Matrix | PackedMatrix | NDArray[np.float32]],
    *,
    pages: int,
    kv_dtype: str = "int8",
    threads: int = 1,
    tier: str = "portable",
) -> Executor | ReferenceExecutor:
    """An executor of the given tier (as `cpu.choose_tier` names it): native, or NumPy for "reference".

    Packed matrices are for native tiers only.
    """
    if tier == "reference":
        from freehold.kernels.reference import ReferenceExecutor

        plain = typing.cast("Mapping[str, Matrix | NDArray[np.float32]]", weights)
        return ReferenceExecutor(program, plain, pages=pages, kv_dtype=kv_dtype, threads=threads)
    from freehold.kernels.executor import Executor

    return Executor(program, weights, pages=pages, kv_dtype=kv_dtype, threads=threads, tier=tier)
