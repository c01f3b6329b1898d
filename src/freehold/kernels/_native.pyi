"""The native module: see `csrc/bindings.cpp`."""

import numpy as np
from numpy.typing import NDArray

class Packed:
    """A packed weight matrix."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int: ...
    def float32(self) -> NDArray[np.float32]: ...

class Executor:
    """A program bound to weights, a KV cache and a team of threads."""

    def __init__(
        self,
        tier: str,
        buffers: list[tuple[int, bool]],
        program: list[tuple[str, int, int, list[Packed], NDArray[np.float32] | None, dict[str, float]]],
        logits: int,
        kv_type: str,
        layers: int,
        pages: int,
        kv_heads: int,
        head_dim: int,
        context: int,
        vocabulary: int,
        threads: int,
    ) -> None: ...
    def run(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        tables: NDArray[np.int32],
        outputs: NDArray[np.int32],
    ) -> NDArray[np.float32]: ...
    def copy_page(self, source: int, target: int) -> None: ...
    @property
    def kv_bytes(self) -> int: ...
    def buffer(self, index: int, rows: int) -> NDArray[np.float32]: ...

def pack_quantized(
    codes: NDArray[np.uint8], scales: NDArray[np.float32], offsets: NDArray[np.float32] | None, bits: int, group: int
) -> Packed: ...
def pack_float(data: NDArray[np.float32], /) -> Packed: ...
def pack_bf16(data: NDArray[np.uint16], /) -> Packed: ...
def linear(tier: str, matrix: Packed, x: NDArray[np.float32]) -> NDArray[np.float32]: ...
def cpu_features() -> list[tuple[str, bool]]: ...
def has_tier(name: str) -> bool: ...
def read_bandwidth(bytes: int, threads: int, repeats: int) -> float: ...
def int8_peak(tier: str, threads: int, seconds: float) -> float: ...
