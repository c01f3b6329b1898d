"""Memory that a process has freed goes back to the system."""

from __future__ import annotations

import ctypes

import pytest

from freehold.process_memory import give_back, resident_bytes


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library has no malloc_trim")
def test_freed_memory_goes_back_to_the_system() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    size, count = 64 << 10, 1024  # small enough not to be mapped one by one
    pieces = [library.malloc(size) for _ in range(count)]
    for piece in pieces:
        ctypes.memset(piece, 1, size)
    last = library.malloc(size)  # keeps the top of the heap in use, so that freeing alone gives nothing back
    for piece in pieces:
        library.free(piece)
    before = resident_bytes()
    give_back()
    assert before - resident_bytes() > size * count // 2
    library.free(last)
