"""Memory that a process has freed goes back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

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


ARENAS = """
import ctypes, sys, threading
from freehold.process_memory import few_arenas
few_arenas()
library, all_here = ctypes.CDLL(None), threading.Barrier(8)
def allocate():
    all_here.wait()
    library.malloc(1000)
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
library.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(library.fopen(sys.argv[1].encode(), b"w"))
library.malloc_info(0, file)
library.fclose(file)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
def test_threads_share_one_arena(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", ARENAS, tmp_path / "arenas.xml"], check=True)
    assert (tmp_path / "arenas.xml").read_text().count("<heap nr=") == 1
