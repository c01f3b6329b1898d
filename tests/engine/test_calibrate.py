"""Calibration: the statistics are those of their definition, and a run killed anywhere ends with the same files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from tests.engine import tiny

from freehold.engine.calibrate import calibrate
from freehold.errors import UsageError

IDS = np.random.default_rng(3).integers(0, tiny.VOCABULARY, 96).tolist()


def measure(model: Path, out: Path, ids: list[int] = IDS, **more: object):  # type: ignore[no-untyped-def]
    return calibrate(model, ids, out, source="s", text="t", **more)  # type: ignore[arg-type]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "calibration.json"}


def test_every_linear_of_the_program_is_described(tmp_path: Path) -> None:
    facts = measure(tiny.write(tmp_path / "model"), tmp_path / "out")
    assert (facts.tokens, facts.window) == (96, 96)
    assert 1 < facts.perplexity < 50 * tiny.VOCABULARY
    named = {}
    for path in sorted((tmp_path / "out").glob("0*.safetensors")):
        with safe_open(path, "np") as file:
            for name, item in json.loads(file.metadata()["inputs"]).items():
                named[name] = item["tensors"]
                assert set(item["int8"]) == {"32", "64", "128"}
                for tensor in item["tensors"]:
                    correlation = file.get_tensor(f"{tensor}.correlation").astype(np.float64)
                    assert np.allclose(np.diag(correlation), 1, atol=1e-3)
                    assert np.linalg.eigvalsh(correlation).min() > -1e-2
                    assert (file.get_tensor(f"{tensor}.importance") >= 0).all()
    assert named["layers.0.qkv"] == [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    assert len(named) == 4 * tiny.config()["num_hidden_layers"] + 1


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
def test_a_run_that_is_cut_off_goes_on_and_ends_with_the_same_files(tmp_path: Path, after: int) -> None:
    model = tiny.write(tmp_path / "model")
    measure(model, tmp_path / "whole")
    left = after

    def progress(done: int, total: int | None, what: str) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1

    with pytest.raises(KeyboardInterrupt):
        measure(model, tmp_path / "cut", progress=progress)
    assert not (tmp_path / "cut" / "calibration.json").exists()
    measure(model, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_finished_statistics_are_taken_as_they_are_and_those_of_another_text_are_not(tmp_path: Path) -> None:
    model = tiny.write(tmp_path / "model")
    first = measure(model, tmp_path / "out")
    assert measure(model, tmp_path / "out") == first
    other = calibrate(model, IDS[:64], tmp_path / "out", source="s", text="other")
    assert other.tokens == 64


def test_every_window_begins_with_the_token_the_model_expects(tmp_path: Path) -> None:
    model, ids = tiny.write(tmp_path / "model"), (IDS * 12)[:1024]
    begun = [7 if place % 512 == 0 else token for place, token in enumerate(ids)]
    facts = measure(model, tmp_path / "told", ids, bos=7)
    assert facts.bos == 7
    measure(model, tmp_path / "written", begun)
    assert contents(tmp_path / "told") == contents(tmp_path / "written")
    assert measure(model, tmp_path / "told", ids, bos=8).bos == 8


@pytest.mark.parametrize("left", ["begun.partial", "00001.safetensors"])
def test_a_run_that_was_killed_as_it_began_is_begun_again(tmp_path: Path, left: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / left).write_text("{")
    measure(tiny.write(tmp_path / "model"), tmp_path / "out")
    assert not (tmp_path / "out" / "begun.partial").exists()


@pytest.mark.parametrize("damaged", ["begun.json", "calibration.json"])
def test_what_says_nothing_any_more_counts_as_not_there(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / damaged).write_text("{")
    assert measure(tiny.write(tmp_path / "model"), tmp_path / "out").tokens == len(IDS)


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        measure(tiny.write(tmp_path / "model"), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(("ids", "problem"), [([1] * 8, "at least"), ([tiny.VOCABULARY] * 40, "vocabulary")])
def test_a_text_that_can_not_be_used_is_refused(tmp_path: Path, ids: list[int], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        measure(tiny.write(tmp_path / "model"), tmp_path / "out", ids)
