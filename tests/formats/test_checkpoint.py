"""Opening a model, whatever it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from freehold.errors import FormatError
from freehold.formats import open_checkpoint
from tests.formats.building import gguf


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A dense model of eight matrices of 1 MB."""
    tensors = {f"layer.{i}": np.full((512, 512), i, np.float32) for i in range(8)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 5}), encoding="utf-8")
    return tmp_path


def test_a_directory_gives_its_config_and_tensors(directory: Path) -> None:
    with open_checkpoint(directory) as checkpoint:
        assert checkpoint.path == directory
        assert checkpoint.config == {"model_type": "llama", "vocab_size": 5}
        assert sorted(checkpoint.names()) == [f"layer.{i}" for i in range(8)]
        assert checkpoint.info("layer.3").shape == (512, 512)
        np.testing.assert_array_equal(checkpoint.float32("layer.3"), np.full((512, 512), 3, np.float32))


def test_loading_one_tensor_holds_no_other(directory: Path) -> None:
    tracemalloc.start()
    try:
        with open_checkpoint(directory) as checkpoint:
            opened, peak = tracemalloc.get_traced_memory()
            assert peak < 300_000
            for name in checkpoint.names():
                checkpoint.load(name)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - opened < 1.5 * 512 * 512 * 4
    finally:
        tracemalloc.stop()


def test_tensors_outlive_their_checkpoint(directory: Path) -> None:
    with open_checkpoint(directory) as checkpoint:
        tensor = checkpoint.float32("layer.7")
    assert tensor[511, 511] == 7


def test_loading_from_a_closed_checkpoint_is_one_clear_error(directory: Path) -> None:
    with open_checkpoint(directory) as checkpoint:
        assert checkpoint.info("layer.0").nbytes == 512 * 512 * 4
    with pytest.raises(FormatError, match=r"can't read .*model\.safetensors"):
        checkpoint.load("layer.0")


def test_a_gguf_file_is_known_by_its_first_bytes_too(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(gguf())
    with open_checkpoint(tmp_path / "blob") as checkpoint:
        assert checkpoint.config["model_type"] == "llama"


@pytest.mark.parametrize("name", ["nothing", "nothing.gguf", "nothing/at/all"])
def test_a_path_with_nothing_there_is_one_clear_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match="no model at") as caught:
        open_checkpoint(tmp_path / name)
    assert caught.value.hint == "give a Hugging Face directory or a .gguf file"


def test_a_path_the_system_refuses_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"can't open .*: File name too long"):
        open_checkpoint(tmp_path / ("x" * 300))


def test_a_safetensors_file_by_itself_asks_for_its_directory(directory: Path) -> None:
    with pytest.raises(FormatError, match=r"expected a model directory or a \.gguf file") as caught:
        open_checkpoint(directory / "model.safetensors")
    assert "the directory that holds it" in str(caught.value.hint)


def test_a_directory_without_config_points_to_the_gguf_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"expected config\.json in") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint is None
    (tmp_path / "model.gguf").write_bytes(gguf())
    with pytest.raises(FormatError, match=r"expected config\.json in") as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path / "model.gguf") in str(caught.value.hint)


def test_a_directory_without_safetensors_says_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(FormatError, match=r"expected model\.safetensors or model\.safetensors\.index\.json") as caught:
        open_checkpoint(tmp_path)
    assert "PyTorch .bin files are not read" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "expected a JSON object, found list"),
        (b"\xff{}", "expected UTF-8, found byte 0xff at 0"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1, "a": 2}', "key 'a' appears twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_a_broken_config_is_one_clear_error(directory: Path, text: bytes, problem: str) -> None:
    (directory / "config.json").write_bytes(text)
    with pytest.raises(FormatError, match=problem) as caught:
        open_checkpoint(directory)
    assert "config.json" in caught.value.message


def test_a_config_too_large_to_be_one_is_refused_unread(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.formats.reading.MAX_JSON_BYTES", 20)
    with pytest.raises(FormatError, match="of at most 20 bytes, found 40"):
        open_checkpoint(directory)


def test_a_named_pipe_is_refused_without_waiting_for_it(directory: Path) -> None:
    (directory / "config.json").unlink()
    os.mkfifo(directory / "config.json")
    with pytest.raises(FormatError, match="expected a file at"):
        open_checkpoint(directory)


def test_importing_formats_loads_nothing_heavy() -> None:
    program = "import sys, freehold.formats; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    heavy = {"numpy", "tokenizers", "jinja2", "httpx2", "huggingface_hub", "safetensors"}
    assert "freehold.formats" in loaded
    assert not heavy & set(loaded)


def test_opening_a_checkpoint_loads_neither_tokenizers_nor_the_http_client(directory: Path) -> None:
    program = (
        "import sys, pathlib, freehold.formats as f; f.open_checkpoint(pathlib.Path(sys.argv[1])); print(*sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(directory)], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "numpy" in run
    assert not {"tokenizers", "jinja2", "httpx2", "huggingface_hub", "safetensors"} & set(run)
