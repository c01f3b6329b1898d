"""Tuning: gradients are those of finite differences, the result is never worse, and a kill costs a minute at most."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.engine import tiny

from freehold.compress import CompressOptions, compress
from freehold.engine import tune as tuning
from freehold.engine.models import program_for
from freehold.engine.student import Passes, Student, Teacher
from freehold.engine.tune import tune
from freehold.errors import UsageError
from freehold.formats import QuantizedTensor, open_checkpoint

IDS = np.random.default_rng(5).integers(0, tiny.VOCABULARY, 40 * 64).tolist()
FAMILIES = {
    "llama": {},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
}


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "WINDOW", 64)


def models(place: Path, family: str = "llama", **options: object) -> tuple[Path, Path]:
    """A tiny model, and the same in int4."""
    original = tiny.write(place / "model", **FAMILIES[family])
    compress(original, place / "int4", CompressOptions(kv_bits=4, **options))  # type: ignore[arg-type]
    return original, place / "int4"


def ticking() -> Callable[[], float]:
    """A clock that goes on by a second whenever it is read."""
    seconds = itertools.count()
    return lambda: float(next(seconds))


def run(original: Path, compressed: Path, work: Path, minutes: float = 3.0, **more: object) -> dict[str, object]:
    place = tune(
        original,
        compressed,
        IDS,
        work,
        minutes=minutes,
        source="s",
        text="t",
        start="0" * 64,
        **more,  # type: ignore[arg-type]
    )
    facts: dict[str, object] = json.loads((place / "tuned.json").read_text())
    return facts


@pytest.fixture
def passes() -> Iterator[Callable[..., Passes]]:
    with ThreadPoolExecutor(2) as pool:
        yield lambda program, keep=True: Passes(program, pool, keep=keep, tick=lambda: None)


def at_random(student: Student, size: float) -> None:
    generator = np.random.default_rng(7)
    for delta in student.deltas.values():
        delta += (size * generator.standard_normal(delta.shape)).astype(np.float32)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_of_scales_gains_and_biases_are_those_of_finite_differences(
    tmp_path: Path, family: str, symmetric: bool, passes: Callable[..., Passes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freehold.engine.student.to_bfloat16", lambda values: values)  # rounding has no derivative
    monkeypatch.setattr("freehold.engine.student.bf16_to_float32", lambda values: values)
    original, compressed = models(tmp_path, family, symmetric=symmetric)
    with open_checkpoint(original) as truth, open_checkpoint(compressed) as model:
        program = program_for(truth.config, guard=False)
        teacher, student = Teacher(truth, program), Student(model, program)
        kinds = {name.split(".")[-1] for name in student.deltas}
        assert kinds == ({"weight", "bias"} if family == "qwen2" else {"weight"})
        ids = np.array(IDS[:48]).reshape(2, 24)
        work = passes(program)
        finals, head = work.finals(teacher, ids), teacher.section(work.head)
        at_random(student, 0.05)
        _, gradients = work.descend(student, head, ids, finals)
        assert set(gradients) == set(student.deltas)

        def loss() -> float:
            found = work.compare(student, (head, student.section(work.head)), work.finals(student, ids), finals)
            return found.divergence / found.tokens

        generator = np.random.default_rng(1)
        for name, delta in student.deltas.items():
            direction = np.sign(generator.standard_normal(delta.shape)).astype(np.float32) / np.sqrt(delta.size)
            slope = float((gradients[name] * direction).sum())
            step = np.float32(2e-2)
            delta += step * direction
            high = loss()
            delta -= 2 * step * direction
            low = loss()
            delta += step * direction
            assert slope == pytest.approx((high - low) / (2 * step), rel=5e-2, abs=2e-4), name


def test_what_is_not_kept_in_memory_is_computed_again_to_the_same_gradients(
    tmp_path: Path, passes: Callable[..., Passes]
) -> None:
    original, compressed = models(tmp_path)
    with open_checkpoint(original) as truth, open_checkpoint(compressed) as model:
        program = program_for(truth.config, guard=False)
        teacher, student = Teacher(truth, program), Student(model, program)
        ids = np.array(IDS[:48]).reshape(2, 24)
        found = []
        for keep in (True, False):
            work = passes(program, keep)
            finals, head = work.finals(teacher, ids), teacher.section(work.head)
            found.append(work.descend(student, head, ids, finals))
        assert found[0][0] == found[1][0]
        for name, gradient in found[0][1].items():
            assert np.array_equal(gradient, found[1][1][name])


def test_tuning_lowers_the_divergence_on_text_it_has_not_seen(tmp_path: Path) -> None:
    facts = run(*models(tmp_path), tmp_path / "work", minutes=20.0, clock=ticking())
    assert facts["steps"] > 20  # type: ignore[operator]
    assert facts["kld_after"] < 0.97 * facts["kld_before"]  # type: ignore[operator]
    assert facts["kld_after"] == min(kld for _, kld in facts["curve"])  # type: ignore[attr-defined]


def test_a_course_that_only_makes_it_worse_ends_where_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "RATE", 3.0)
    facts = run(*models(tmp_path), tmp_path / "work", clock=ticking())
    assert facts["steps"] > 0  # type: ignore[operator]
    assert facts["kld_after"] == facts["kld_before"]
    assert not load_file(tmp_path / "work" / ("0" * 16) / "tuned.safetensors")


def test_without_time_for_a_step_nothing_is_changed(tmp_path: Path) -> None:
    facts = run(*models(tmp_path), tmp_path / "work", minutes=0.1, clock=ticking())
    assert (facts["steps"], facts["kld_after"]) == (0, facts["kld_before"])


@pytest.mark.parametrize("after", [5, 60, 200])
def test_a_run_that_is_cut_off_goes_on_with_the_time_that_is_left(
    tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "SAVE_SECONDS", 30.0)
    original, compressed = models(tmp_path)
    left = after

    def progress(done: int, total: int | None, what: str) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1

    with pytest.raises(KeyboardInterrupt):
        run(original, compressed, tmp_path / "work", minutes=10.0, clock=ticking(), progress=progress)
    assert not (tmp_path / "work" / ("0" * 16) / "tuned.json").exists()
    facts = run(original, compressed, tmp_path / "work", minutes=10.0, clock=ticking())
    assert facts["kld_after"] < facts["kld_before"]  # type: ignore[operator]
    assert facts["seconds"] < 2 * 10 * 60  # type: ignore[operator]
    assert [second for second, _ in facts["curve"]] == sorted(second for second, _ in facts["curve"])  # type: ignore[attr-defined]


def test_a_finished_result_stays(tmp_path: Path) -> None:
    original, compressed = models(tmp_path)
    first = run(original, compressed, tmp_path / "work", clock=ticking())

    def never() -> float:
        raise AssertionError("nothing is left to do")

    assert run(original, compressed, tmp_path / "work", clock=never) == first


def test_a_group_of_zeros_with_a_zero_point_stays_zero(tmp_path: Path) -> None:
    _, compressed = models(tmp_path, symmetric=False)
    name = "model.layers.0.mlp.up_proj.weight"
    with open_checkpoint(compressed) as model:
        program = program_for(model.config, guard=False)
        student = Student(model, program)
        tensor = student._tensors[name]
        assert isinstance(tensor, QuantizedTensor)
        assert tensor.offsets is not None
        tensor.scales[0] = tensor.offsets[0] = 0
        at_random(student, 0.05)
        ops = [op for op in program.ops if "layers.0.gate_up" in op.weights]
        (weight,) = student.section(ops).values()
    assert np.isfinite(weight).all()
    assert not weight[len(weight) // 2].any()


def test_a_directory_with_files_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    original, compressed = models(tmp_path)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds 'mine\.txt', which is no tuning's"):
        run(original, compressed, tmp_path / "work", clock=ticking())
    assert (tmp_path / "work" / "mine.txt").read_text() == "mine"


def test_what_a_run_left_that_was_killed_while_it_cleared_is_cleared(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / ("0" * 16)).mkdir(parents=True)
    for name in ("teacher-00001.npy", "text.json.partial"):
        (work / name).write_text("left")
    facts = run(*models(tmp_path), work, minutes=0.1, clock=ticking())
    assert facts["steps"] == 0
    assert sorted(path.name for path in work.iterdir()) == ["0" * 16, "teacher-00000.npy", "text.json"]


def test_too_short_a_text_is_refused(tmp_path: Path) -> None:
    original, compressed = models(tmp_path)
    with pytest.raises(UsageError, match="at least 64 tokens"):
        tune(original, compressed, IDS[:40], tmp_path / "w", minutes=1, source="s", text="t", start="0" * 64)
