"""How much memory the KV cache may take, with the reason. Knows Linux's accounts, not models' weights."""

from __future__ import annotations

from pathlib import Path

from freehold.engine.blocks import pages_for
from freehold.errors import UsageError
from freehold.kernels.program import PAGE, Program
from freehold.settings import EngineSettings

MIB = 1 << 20
DEFAULT_SHARE = 4
"""The KV cache takes one part in so many of free memory by default ..."""
DEFAULT_MOST = 4096 * MIB
"""... but no more than this."""

_BYTES = {"f32": 4, "f16": 2, "int8": 1}


def page_bytes(program: Program, kv_dtype: str) -> int:
    """Bytes of one page over all layers: K and V, and for int8 a float32 scale for each head and token."""
    head = program.head_dim * _BYTES[kv_dtype] + (4 if kv_dtype == "int8" else 0)
    return 2 * program.layers * PAGE * program.kv_heads * head


def free_memory() -> int:
    """Bytes this process may still take: the machine's available memory, or what the cgroup leaves if that is less."""
    available = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        available = min(available, max(int(text) - int(used.read_text()), 0))
    return available


def kv_pages(program: Program, settings: EngineSettings, context: int) -> int:
    """Pages of the KV cache: what the setting (or free memory) allows, but no more than could ever be used.

    Raises:
        UsageError: kv_memory_mb is too small for a single page.
    """
    memory = settings.kv_memory_mb * MIB or min(free_memory() // DEFAULT_SHARE, DEFAULT_MOST)
    size = page_bytes(program, settings.kv_dtype)
    if memory < size:
        raise UsageError(
            f"the KV cache needs at least {-(-size // MIB)} MiB for one page of {PAGE} tokens, got {memory // MIB} MiB",
            hint="raise kv_memory_mb, or free some memory",
        )
    return min(memory // size, settings.max_batch * pages_for(context))
