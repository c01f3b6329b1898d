"""Runs the command line as a person does: in a process of its own, with a home of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True, scope="session")
def _heed_ctrl_c() -> None:
    """A background job of a shell starts with SIGINT ignored, and so would our children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment without any FREEHOLD_* setting, whose store and settings lie in a temporary directory."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("FREEHOLD_", "XDG_", "HF_"))}
    return kept | {
        "FREEHOLD_HOME": str(tmp_path / "home"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
    }


@pytest.fixture
def freehold(home: dict[str, str], tmp_path: Path) -> Run:
    """`freehold(*words, env={...}, input="...")` -> the finished process."""

    def run(*words: str, env: dict[str, str] | None = None, input: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "freehold", *words]
        return subprocess.run(
            command, env=home | (env or {}), input=input, capture_output=True, text=True, cwd=tmp_path, timeout=120
        )

    return run


VECTORS = Path(__file__).parents[1] / "vectors" / "models"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A directory with a random Llama small enough to run in an instant, and a tokenizer of single bytes."""
    model = tmp_path / "tiny"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(VECTORS / "llama-tied" / name, model / name)
    # GPT-2's letters for bytes: printable ones stand for themselves, the others follow from U+0100 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {"type": "BPE", "vocab": {letter: i for i, letter in enumerate(letters)}, "merges": []},
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return model
