"""KV memory: what the setting says, bounded by what could be used, refused when it holds nothing."""

from __future__ import annotations

import pytest
from tests.engine import tiny

from freehold.engine.memory import MIB, free_memory, kv_pages, page_bytes
from freehold.engine.models import program_for
from freehold.errors import UsageError
from freehold.kernels import make_executor
from freehold.settings import EngineSettings

PROGRAM = program_for(tiny.config())


def test_a_page_takes_what_the_executor_allocates() -> None:
    for dtype in ("int8", "f16", "f32"):
        executor = make_executor(PROGRAM, tiny.weights(PROGRAM), pages=10, kv_dtype=dtype, tier="portable")
        assert page_bytes(PROGRAM, dtype) * 10 == executor.kv_bytes  # type: ignore[union-attr]


def test_the_setting_decides_how_many_pages_there_are() -> None:
    size = page_bytes(PROGRAM, "int8")
    assert kv_pages(PROGRAM, EngineSettings(kv_memory_mb=1), 1024) == MIB // size
    assert kv_pages(PROGRAM, EngineSettings(kv_memory_mb=1, kv_dtype="f32"), 1024) == MIB // page_bytes(PROGRAM, "f32")


def test_there_are_no_more_pages_than_could_ever_be_used() -> None:
    assert kv_pages(PROGRAM, EngineSettings(kv_memory_mb=1000, max_batch=3), 100) == 3 * 2


def test_the_default_is_a_share_of_free_memory() -> None:
    assert 0 < free_memory() < 1 << 50
    huge = program_for(tiny.config(num_hidden_layers=100, num_key_value_heads=4, head_dim=256))
    pages = kv_pages(huge, EngineSettings(max_batch=100_000), 1 << 20)
    assert 0 < pages * page_bytes(huge, "int8") <= 4096 * MIB


def test_memory_that_holds_not_one_page_is_refused() -> None:
    huge = program_for(tiny.config(num_hidden_layers=100, num_key_value_heads=4, head_dim=256))
    with pytest.raises(UsageError, match="at least 13 MiB for one page of 64 tokens, got 1 MiB") as caught:
        kv_pages(huge, EngineSettings(kv_memory_mb=1), 1024)
    assert "kv_memory_mb" in (caught.value.hint or "")
