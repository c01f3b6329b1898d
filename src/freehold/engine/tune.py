"""Tuning: the scales, gains and biases of a compressed model, moved towards its original within a time budget.

Windows of a text in a fixed random order; the teacher's last layer output is kept on the disk, so that a second round
through the text costs no second pass of the teacher. Adam with a learning rate that falls to zero as the budget is spent.
A few windows are held out: they are measured at the start and now and then, and the best state found is the result, so
that it is never worse than the start on them. The state is saved as it goes: a run that was cut off goes on from there.

    WORK/text.json                  the model and the text that the files beside it are of
    WORK/teacher-00000.npy          float32 [windows, T, hidden]; the first file holds the held-out windows
    WORK/START/state.safetensors    parameters, Adam's moments and the best parameters yet; removed at the end
    WORK/START/tuned.safetensors    the result: "<tensor>" float32, scales [N, groups] or a vector, as they are to be stored
    WORK/START/tuned.json           what was measured; written last

Knows no number formats and writes no model: whoever made the model puts the new values in their places.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from freehold.engine.memory import free_memory
from freehold.engine.models import program_for
from freehold.engine.student import Compared, Gradients, Passes, Student, Teacher, tape_bytes
from freehold.engine.tape import F32
from freehold.errors import UsageError
from freehold.formats.checkpoint import open_checkpoint
from freehold.formats.safetensors import SafetensorsFile
from freehold.formats.writing import replacing, write_file
from freehold.kernels.cpu import choose_threads
from freehold.progress import Progress, silent

VERSION = 1
"""Raised whenever the files would mean something else."""
WINDOW = 512
SMALLEST_WINDOW = 32
HELD_OUT = 4
CHUNK = 16
"""Windows that the teacher reads at a time."""
BATCH = 2
"""Windows of a step; as many as there are threads where those are more, up to LARGEST_BATCH."""
LARGEST_BATCH = 8
RATE = 5e-4
"""Relative change of a scale in a step, at most and at first."""
WARM_UP = 4
FORGET = 0.9, 0.95
"""How much of its moments Adam keeps from step to step: short, as there are tens to hundreds of steps."""
FLOOR = 0.1
"""Share of a tensor's root mean square gradient below which a parameter moves less: rare tokens' rows see mostly noise."""
MEASUREMENTS = 6
SAVE_SECONDS = 60.0
KEEP_SHARE = 4
"""Derivatives are kept in memory while they need no more than one part in so many of what is free."""
_OURS = re.compile(r"(text\.json|teacher-\d{5}\.npy)(\.partial)?|[0-9a-f]{16}")
"""Names in the working directory."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was done and measured.

    Args:
        minutes, seconds: allowed and taken, interrupted runs included.
        steps, tokens: of training, tokens counted as often as they were read.
        held_out: tokens that were measured on and never trained on.
        kld_before, kld_after, top1_before, top1_after: on those, in float32: mean KL divergence from the original in
            nats, and share of positions where both hold one token likeliest.
        curve: (seconds, kld) of every measurement.
    """

    minutes: float
    seconds: float
    steps: int
    tokens: int
    held_out: int
    kld_before: float
    kld_after: float
    top1_before: float
    top1_after: float
    curve: tuple[tuple[float, float], ...]


def tune(
    original: Path,
    compressed: Path,
    ids: Sequence[int],
    work: Path,
    *,
    minutes: float,
    source: str,
    text: str,
    start: str,
    bos: int | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Tune a compressed checkpoint towards the one it was made from; returns the directory with the result.

    Args:
        ids: the text's token ids; windows that are not full are left out.
        source, text, start: digests of the original, the text and the compressed model as it is.
        bos: put in the place of each window's first token, for models that expect their text to begin so.
        clock: seconds, for the budget.

    Raises:
        UsageError: too few tokens, ids outside the vocabulary, or files of somebody else's in `work`.
        FormatError, UnsupportedError: a checkpoint that can't be loaded, an operation without a derivative.
    """
    windows = _windows(ids)
    if bos is not None:
        windows[:, 0] = bos
    place = work / start[:16]
    facts = {"version": VERSION, "source": source, "text": text, "tokens": windows.size, "window": windows.shape[1]}
    facts |= {} if bos is None else {"bos": bos}
    _take_up(work, facts)
    if (place / "tuned.json").is_file() and json.loads((place / "tuned.json").read_text())["minutes"] == minutes:
        return place
    place.mkdir(exist_ok=True)
    with open_checkpoint(original) as truth, open_checkpoint(compressed) as model:
        program = program_for(truth.config, guard=False)
        if not 0 <= windows.min() <= windows.max() < program.vocabulary:
            raise UsageError(f"a token id is outside the vocabulary of {program.vocabulary}")
        budget = _Budget(60 * minutes, clock, progress or silent)
        threads = choose_threads()[0]
        batch = min(max(BATCH, threads), LARGEST_BATCH)
        keep = KEEP_SHARE * batch * tape_bytes(program, windows.shape[1]) <= free_memory()
        with ThreadPoolExecutor(threads) as pool:
            passes = Passes(program, pool, keep=keep, tick=budget.tick)
            course = _Course(passes, Teacher(truth, program), windows, work, batch)
            run = _Run(passes, course, Student(model, program), budget, place)
            tuning = run.run()
    write_file(place / "tuned.safetensors", save(run.result()))
    write_file(place / "tuned.json", json.dumps(asdict(tuning), indent=2))
    (place / "state.safetensors").unlink(missing_ok=True)
    return place


class _Budget:
    """How much of the time is spent, earlier runs' included."""

    def __init__(self, seconds: float, clock: Callable[[], float], progress: Progress) -> None:
        self.seconds, self._clock, self._progress = seconds, clock, progress
        self._began = clock()
        self.label = "tuning"

    def resume(self, spent: float) -> None:
        """Count what an earlier run spent."""
        self._began -= spent

    @property
    def spent(self) -> float:
        """Seconds."""
        return self._clock() - self._began

    def tick(self) -> None:
        """Tell how far it is."""
        self._progress(int(min(self.spent, self.seconds)), int(self.seconds), self.label)


class _Course:
    """The text: what is held out, and batches of the rest in a fixed order, each with the teacher's finals."""

    def __init__(self, passes: Passes, teacher: Teacher, windows: NDArray[np.int64], work: Path, batch: int) -> None:
        self._passes, self._teacher, self._work = passes, teacher, work
        count = len(windows)
        held = max(1, min(HELD_OUT, count // 4))
        out = [(number + 1) * count // (held + 1) for number in range(held)]
        self.held_out = windows[out]
        rest = np.random.default_rng(0).permutation([number for number in range(count) if number not in out])
        self._rest = windows[rest]
        self._batch = min(batch, len(rest))
        self.head = teacher.section(passes.head)

    @property
    def held_out_finals(self) -> F32:
        """The teacher's, of the windows held out."""
        return self._read(0)

    @property
    def size(self) -> int:
        """Windows of a step."""
        return self._batch

    def hold_out(self) -> None:
        """Let the teacher read the windows held out."""
        self._teach(0, self.held_out)

    def untaught(self, step: int) -> int:
        """Windows that the teacher has to read before a step."""
        return sum(len(self._chunk(chunk)) for chunk in self._chunks(step) if not self._path(chunk).exists())

    def teach(self, step: int) -> None:
        """Let the teacher read them."""
        for chunk in self._chunks(step):
            self._teach(chunk, self._chunk(chunk))

    def batch(self, step: int) -> tuple[NDArray[np.int64], F32]:
        """Windows [B, T] of a step and their finals."""
        numbers = self._numbers(step)
        finals = [self._read(number // CHUNK + 1)[number % CHUNK] for number in numbers]
        return self._rest[numbers], np.stack(finals)

    def _numbers(self, step: int) -> list[int]:
        return [(step * self._batch + place) % len(self._rest) for place in range(self._batch)]

    def _chunks(self, step: int) -> list[int]:
        return sorted({number // CHUNK + 1 for number in self._numbers(step)})

    def _chunk(self, chunk: int) -> NDArray[np.int64]:
        windows: NDArray[np.int64] = self._rest[(chunk - 1) * CHUNK : chunk * CHUNK]
        return windows

    def _path(self, chunk: int) -> Path:
        return self._work / f"teacher-{chunk:05d}.npy"

    def _teach(self, chunk: int, windows: NDArray[np.int64]) -> None:
        if not self._path(chunk).exists():
            finals = self._passes.finals(self._teacher, windows)
            with replacing(self._path(chunk)) as file:
                np.save(file, finals)

    def _read(self, chunk: int) -> F32:
        found: F32 = np.load(self._path(chunk), mmap_mode="r")
        return found


class _Run:
    def __init__(self, passes: Passes, course: _Course, student: Student, budget: _Budget, place: Path) -> None:
        self._passes, self._course, self._student, self._budget = passes, course, student, budget
        self._path = place / "state.safetensors"
        zeros = student.deltas
        self._moments: tuple[Gradients, Gradients] = (_like(zeros), _like(zeros))
        self._best = _like(zeros)
        self._step, self._tokens = 0, 0
        self._curve: list[tuple[float, float, float]] = []
        self._saved = 0.0

    def run(self) -> Tuning:
        """Steps until the time is spent, measured at the start, at the end and in equal parts between."""
        if self._path.exists():
            self._load()
        self._course.hold_out()
        measuring = self._timed(self._measure)
        teaching = measuring / len(self._course.held_out)
        step = 4 * teaching * self._course.size
        while self._left > step + measuring + teaching * self._course.untaught(self._step):
            self._course.teach(self._step)
            step = self._timed(self._descend)
            since = self._budget.spent - self._curve[-1][0]
            if since > self._budget.seconds / MEASUREMENTS and self._left > step + 2 * measuring:
                measuring = self._timed(self._measure)
            if self._budget.spent - self._saved > SAVE_SECONDS:
                self._save()
        if self._step:
            self._measure()
        best = min(self._curve, key=lambda point: point[1])
        return Tuning(
            minutes=self._budget.seconds / 60,
            seconds=self._budget.spent,
            steps=self._step,
            tokens=self._tokens,
            held_out=self._course.held_out.size,
            kld_before=self._curve[0][1],
            kld_after=best[1],
            top1_before=self._curve[0][2],
            top1_after=best[2],
            curve=tuple((seconds, kld) for seconds, kld, _ in self._curve),
        )

    def result(self) -> dict[str, F32]:
        """The best state's values, as they are to be stored."""
        self._student.deltas = self._best
        return self._student.values()

    @property
    def _left(self) -> float:
        return self._budget.seconds - self._budget.spent

    def _timed(self, work: Callable[[], None]) -> float:
        began = self._budget.spent
        work()
        return self._budget.spent - began

    def _descend(self) -> None:
        share = self._budget.spent / self._budget.seconds
        ids, truth = self._course.batch(self._step)
        _, gradients = self._passes.descend(self._student, self._course.head, ids, truth)
        self._step += 1
        self._tokens += ids.size
        rate = RATE * min(1.0, self._step / WARM_UP) * max(1 - share, 0.0)
        for name, gradient in gradients.items():
            first, second = (moments[name] for moments in self._moments)
            _adam(self._student.deltas[name], first, second, gradient, rate, self._step)

    def _measure(self) -> None:
        truth = self._course.held_out_finals
        finals = self._passes.finals(self._student, self._course.held_out)
        heads = self._course.head, self._student.section(self._passes.head)
        found: Compared = self._passes.compare(self._student, heads, finals, truth)
        kld = found.divergence / found.tokens
        if not self._curve or kld < min(known for _, known, _ in self._curve):
            self._best = {name: delta.copy() for name, delta in self._student.deltas.items()}
        self._curve.append((self._budget.spent, kld, found.agreed / found.tokens))
        best = min(known for _, known, _ in self._curve)
        self._budget.label = f"tuning, held-out KLD {self._curve[0][1]:.4f} -> {best:.4f}"
        self._save()

    def _save(self) -> None:
        parts = {"delta": self._student.deltas, "m": self._moments[0], "v": self._moments[1], "best": self._best}
        arrays = {f"{kind}.{name}": array for kind, part in parts.items() for name, array in part.items()}
        facts = {"step": self._step, "tokens": self._tokens, "spent": self._budget.spent, "curve": self._curve}
        write_file(self._path, save(arrays, {"facts": json.dumps(facts)}))
        self._saved = self._budget.spent

    def _load(self) -> None:
        with SafetensorsFile(self._path) as file:
            facts: dict[str, Any] = json.loads(file.metadata["facts"])
            names = list(self._student.deltas)
            read = {kind: {name: file.read(f"{kind}.{name}") for name in names} for kind in ("delta", "m", "v", "best")}
        self._student.deltas, self._best, self._moments = read["delta"], read["best"], (read["m"], read["v"])
        self._step, self._tokens = facts["step"], facts["tokens"]
        self._curve = [(seconds, kld, agreed) for seconds, kld, agreed in facts["curve"]]
        self._budget.resume(facts["spent"])
        self._saved = self._budget.spent


def _adam(delta: F32, first: F32, second: F32, gradient: F32, rate: float, step: int) -> None:
    """One step in place (arXiv 1412.6980), with a floor that grows with the tensor's gradients."""
    keep, hold = FORGET
    first += (1 - keep) * (gradient - first)
    second += (1 - hold) * (gradient * gradient - second)
    size = np.sqrt(second / (1 - hold**step))
    size += FLOOR * np.sqrt(np.mean(size * size)) + np.float32(1e-30)
    delta -= np.float32(rate / (1 - keep**step)) * first / size


def _windows(ids: Sequence[int]) -> NDArray[np.int64]:
    window = min(WINDOW, len(ids) // 2)
    if window < SMALLEST_WINDOW:
        raise UsageError(
            f"tuning needs at least {2 * SMALLEST_WINDOW} tokens, got {len(ids)}", hint="give a longer text"
        )
    count = len(ids) // window
    return np.array(ids[: count * window], np.int64).reshape(count, window)


def _take_up(work: Path, facts: dict[str, Any]) -> None:
    """An empty directory, or what an earlier run on the same model and text left."""
    path = work / "text.json"
    if not path.is_file() or json.loads(path.read_text()) != facts:
        foreign = [entry.name for entry in work.iterdir() if not _OURS.fullmatch(entry.name)] if work.exists() else []
        if foreign:
            raise UsageError(f"{work} holds {foreign[0][:80]!r}, which is no tuning's", hint="choose another directory")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_file(path, json.dumps(facts))


def _like(arrays: Gradients) -> Gradients:
    return {name: np.zeros_like(array) for name, array in arrays.items()}
