"""Tuned values in their places: the model on the disk is the one that was measured, and a kill corrupts nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from freehold.compress import CompressOptions, Report, compress
from freehold.compress.kept import KEPT_BUT_TUNED
from freehold.engine.evaluate import evaluate
from freehold.engine.tune import tune
from freehold.errors import FormatError
from freehold.formats import QuantizedTensor, open_checkpoint
from freehold.settings import EngineSettings
from tests.engine import tiny
from tests.formats.packing import packed

IDS = np.random.default_rng(5).integers(0, tiny.VOCABULARY, 1024).tolist()
MINUTES = 3.0
OPTIONS = CompressOptions(kv_bits=4)


def tuned(source: Path, out: Path, work: Path) -> Report:
    seconds = iter(range(1_000_000))

    def tuner(rounded: Path, start: str) -> Path:
        assert (rounded / "config.json").is_file()
        return tune(
            source,
            rounded,
            IDS,
            work,
            minutes=MINUTES,
            source="s",
            text="t",
            start=start,
            clock=lambda: float(next(seconds)),
        )

    return compress(source, out, OPTIONS, tuner=tuner)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model") / "source")


@pytest.fixture(scope="module")
def report(source: Path) -> Report:
    return tuned(source, source.parent / "tuned", source.parent / "work")


def test_the_model_that_is_written_is_the_one_that_was_measured(source: Path, report: Report) -> None:
    assert report.tuning is not None
    assert report.tuning["steps"] > 0
    assert report.tuning["kld_after"] < report.tuning["kld_before"]
    (place,) = (source.parent / "work").glob("*/tuned.json")
    again = json.loads(place.read_text())
    assert again == report.tuning
    # `evaluate` scores halves of windows with int8 activations: near, not equal.
    settings = EngineSettings(isa="reference", kv_dtype="f32")
    compress(source, source.parent / "rounded", OPTIONS)
    before, after = (
        evaluate(source, source.parent / name, IDS, window=512, settings=settings).kld_mean
        for name in ("rounded", "tuned")
    )
    assert after < before
    assert after == pytest.approx(report.tuning["kld_after"], rel=0.35)


def test_only_scales_and_vectors_change_and_the_report_knows_their_errors(source: Path, report: Report) -> None:
    compress(source, source.parent / "plain", OPTIONS)
    changed = 0
    with (
        open_checkpoint(source) as original,
        open_checkpoint(source.parent / "plain") as plain,
        open_checkpoint(source.parent / "tuned") as made,
    ):
        for tensor in report.tensors:
            before, after = plain.load(tensor.name), made.load(tensor.name)
            if isinstance(after, QuantizedTensor):
                assert isinstance(before, QuantizedTensor)
                assert np.array_equal(before.codes, after.codes)
                changed += not np.array_equal(before.scales, after.scales)
            truth, values = original.float32(tensor.name), made.float32(tensor.name)
            error = np.linalg.norm(truth - values) / np.linalg.norm(truth)
            assert tensor.relative_error == pytest.approx(float(error), rel=1e-4, abs=1e-9)
    assert changed > 10


def test_the_page_the_card_and_the_report_say_what_tuning_did(source: Path, report: Report) -> None:
    out = source.parent / "tuned"
    assert report.tuning is not None
    words = f"went from {report.tuning['kld_before']:.4f} to {report.tuning['kld_after']:.4f} nats"
    assert "<h2>Tuning</h2>" in (out / "report.html").read_text()
    assert words in (out / "report.html").read_text()
    assert words in (out / "README.md").read_text()
    assert json.loads((out / "freehold-report.json").read_text())["tuning"] == report.tuning


def test_grids_that_were_kept_are_tuned_in_the_type_of_their_scales(tmp_path: Path) -> None:
    source = packed(tiny.write(tmp_path / "dense"), tmp_path / "packed", "gptq", 32, symmetric=True)
    report = tuned(source, tmp_path / "out", tmp_path / "work")
    kept = [tensor.name for tensor in report.tensors if tensor.reason == KEPT_BUT_TUNED]
    assert not any(tensor.unrounded for tensor in report.tensors)
    with open_checkpoint(source) as original, open_checkpoint(tmp_path / "out") as made:
        changed = 0
        for name in kept:
            before, after = original.load(name), made.load(name)
            assert isinstance(before, QuantizedTensor)
            assert isinstance(after, QuantizedTensor)
            np.testing.assert_allclose(after.scales, before.scales, rtol=0.1)
            changed += not np.array_equal(after.scales, before.scales)
    assert changed == len(kept) == 14


def test_a_result_of_another_model_is_refused(source: Path, tmp_path: Path) -> None:
    other = tiny.write(tmp_path / "other", hidden_size=32)

    def tuner(rounded: Path, start: str) -> Path:
        (place,) = (source.parent / "work").glob("*/tuned.json")
        return place.parent

    with pytest.raises(FormatError):
        compress(other, tmp_path / "out", OPTIONS, tuner=tuner)
    assert not (tmp_path / "out").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.compress.test_retune import tuned
from freehold.compress import write
from freehold.engine import tune

left, kind = int(sys.argv[4]), sys.argv[5]

def dying(real):
    def stand_in(*args, **more):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return real(*args, **more)
    return stand_in

if kind == "tuning":
    tune._Budget.tick = dying(tune._Budget.tick)
else:
    tune.write_file = lambda path, data, real=tune.write_file: (real(path, data), arm(path))

def arm(path):
    if path.name == "tuned.json":  # from here on what is written are tuned values
        write.TensorWriter.put = dying(write.TensorWriter.put)

tuned(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.mark.parametrize(("after", "kind"), [(3, "tuning"), (60, "tuning"), (0, "writing"), (7, "writing")])
def test_a_run_that_is_killed_while_it_tunes_or_writes_ends_well_when_it_is_taken_up(
    source: Path, report: Report, tmp_path: Path, after: int, kind: str
) -> None:
    command = [sys.executable, "-c", KILLED, source, tmp_path / "out", tmp_path / "work", after, kind]
    killed = subprocess.run(list(map(str, command)), env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    again = tuned(source, tmp_path / "out", tmp_path / "work")
    assert again.tuning is not None
    assert again.tuning["kld_after"] < again.tuning["kld_before"]
    if kind == "writing":  # the tuning was done: it is found, and the bytes are those of an uninterrupted run
        expected = (source.parent / "tuned" / "model.safetensors").read_bytes()
        assert (tmp_path / "out" / "model.safetensors").read_bytes() == expected
