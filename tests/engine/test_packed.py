"""The packed copy of a model's weights: the same answers, made once, and never trusted when it is damaged."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.engine import tiny

from freehold.engine import packed
from freehold.engine.models import program_for
from freehold.engine.packed import directory, packed_weights
from freehold.engine.runner import Engine
from freehold.formats.checkpoint import open_checkpoint
from freehold.kernels import packfile
from freehold.settings import EngineSettings

SETTINGS = EngineSettings(isa="portable", kv_memory_mb=8, threads=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own that even tiny models are kept in."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(packed, "SMALLEST", 0)
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "model")


def text(model: Path, **settings: object) -> list[int | None]:
    engine = Engine.load(model, EngineSettings(isa="portable", kv_memory_mb=8, threads=1, **settings))  # type: ignore[arg-type]
    engine.add(tiny.request("a", [5, 6, 7]))
    return tiny.texts(tiny.drain(engine))["a"]


def files() -> list[Path]:
    return sorted(directory().glob("*.packed"))


def load(model: Path) -> packed.Packed:
    with open_checkpoint(model) as checkpoint:
        return packed_weights(checkpoint, program_for(checkpoint.config))[0]


def test_a_mapped_copy_gives_the_same_text_as_weights_in_memory(model: Path) -> None:
    expected = text(model, packed_weights="memory")
    assert files() == []
    assert text(model) == expected
    [made] = files()
    before = made.stat().st_ino
    assert text(model) == expected
    assert [file.stat().st_ino for file in files()] == [before], "the second start made it again"


def test_other_weights_under_the_same_name_get_a_copy_of_their_own_and_the_old_one_goes(model: Path) -> None:
    first = text(model)
    [old] = files()
    tiny.write(model, seed=1)
    assert text(model) != first
    [new] = files()
    assert new != old


def test_a_model_that_is_gone_leaves_no_copy_behind(model: Path, tmp_path: Path) -> None:
    load(model)
    shutil.rmtree(model)
    other = tiny.write(tmp_path / "other", seed=2)
    load(other)
    assert [packfile.facts_of(file)["source"] for file in files()] == [str(other)]


@pytest.mark.parametrize("place", ["beginning", "index", "weights", "end"])
def test_a_damaged_copy_is_made_again(model: Path, place: str) -> None:
    expected = text(model)
    [made] = files()
    data = bytearray(made.read_bytes())
    if place == "end":
        data = data[:-100]
    else:
        data[{"beginning": 17, "index": len(data) - 50, "weights": 1000}[place]] ^= 1
    made.write_bytes(data)
    assert text(model) == expected
    assert made.stat().st_mtime_ns == packfile.STAMP
    packfile.read(made, whole=True)


def test_a_copy_that_was_only_touched_is_kept(model: Path) -> None:
    load(model)
    [made] = files()
    os.utime(made)
    inode = made.stat().st_ino
    load(model)
    assert made.stat().st_ino == inode
    assert made.stat().st_mtime_ns == packfile.STAMP


def test_what_a_crashed_builder_left_is_neither_used_nor_kept(model: Path) -> None:
    directory().mkdir(parents=True)
    left = directory() / f"{'0' * 64}.packed.partial"
    left.write_bytes(b"half")
    load(model)
    assert not left.exists()


def _load_and_report(model: Path, results: multiprocessing.Queue[bytes]) -> None:
    weights = load(model)
    matrix = weights["lm_head"]
    assert isinstance(matrix, packfile.PackedMatrix)
    results.put(matrix.parts[0].float32().tobytes())


def test_several_processes_that_start_at_once_build_one_copy(model: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[bytes] = context.Queue()
    started = [context.Process(target=_load_and_report, args=(model, results)) for _ in range(4)]
    for process in started:
        process.start()
    given = {results.get(timeout=60) for _ in started}
    for process in started:
        process.join()
    assert len(given) == 1
    assert len(files()) == 1


def test_a_cache_that_cannot_be_written_is_done_without(model: Path, cache: Path) -> None:
    expected = text(model, packed_weights="memory")
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("not a directory")
    engine = Engine.load(model, SETTINGS)
    assert any("packed in memory" in note for note in engine.facts.notes)
    assert text(model) == expected


def test_the_contents_are_hashed_once_and_again_when_a_file_changes(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in model.iterdir():
        os.utime(file, ns=(packfile.STAMP, packfile.STAMP))
    hashed: list[str] = []
    real = packed.sha256
    monkeypatch.setattr(packed, "sha256", lambda path: hashed.append(path.name) or real(path))
    first = packed.contents(model)
    assert packed.contents(model) == first
    assert sorted(hashed) == ["config.json", "model.safetensors"]
    os.utime(model / "model.safetensors")
    assert packed.contents(model) == first
    assert len(hashed) == 4


def test_small_checkpoints_get_no_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SMALLEST", 1 << 30)
    load(model)
    assert files() == []


def test_tied_weights_are_kept_once(model: Path) -> None:
    weights = load(model)
    assert weights["embed"] is weights["lm_head"]
    matrix = weights["embed"]
    assert isinstance(matrix, packfile.PackedMatrix)
    np.testing.assert_array_equal(
        matrix.parts[0].float32(), tiny.tensors(program_for(tiny.config()))["model.embed_tokens.weight"]
    )
