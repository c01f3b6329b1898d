"""HumanEval's judge and the plots: what passes, what is stopped, and which models are on the frontier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from freehold.cli.humaneval import isolated, paired, passes, wilson
from freehold.cli.plot import Point, frontier, terminal
from freehold.errors import EngineError


def test_a_program_that_ends_well_passes() -> None:
    assert passes("import math\nassert math.sqrt(4) == 2\n")


@pytest.mark.parametrize(
    "program",
    [
        "assert False",
        "raise SystemExit(3)",
        "x = ' ' * (3 << 30)",
        "import os\nos.fork()",
        "open('big', 'wb').write(b'x' * (2 << 20))",
        "def broken(:",
    ],
    ids=["wrong", "exit", "memory", "fork", "disk", "syntax"],
)
def test_one_that_fails_or_wants_too_much_does_not(program: str) -> None:
    if program.startswith("import os") and _privileged():
        pytest.skip("root has no limit of processes")
    assert not passes(program)


def _privileged() -> bool:
    import os

    return os.geteuid() == 0


def test_a_program_reaches_no_network_where_the_system_lets_us_take_it_away() -> None:
    if not isolated():
        pytest.skip("this system gives no network namespaces")
    listen = "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\n"
    connect = listen + "socket.create_connection(s.getsockname())"
    assert not passes(connect)


def test_a_completion_ends_where_lines_are_no_longer_indented() -> None:
    from freehold.cli.humaneval import _END

    assert (
        _END.split("    return 1\n\n    # done\ndef other():\n    pass", maxsplit=1)[0] == "    return 1\n\n    # done"
    )


def test_a_model_gets_the_prompt_without_its_last_line_break_and_is_judged_with_it_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from freehold.cli import humaneval
    from freehold.settings import EngineSettings

    given: list[str] = []

    def complete(model: Path, prompts: list[str], *rest: object) -> list[str]:
        given.extend(prompts)
        return ["\n    return 1", "\n    return 2"]

    monkeypatch.setattr(humaneval, "complete", complete)
    problem = {
        "prompt": 'def one():\n    """One."""\n',
        "test": "def check(f):\n    assert f() == 1",
        "entry_point": "one",
    }
    found, passed = humaneval.humaneval(Path(), [problem, problem], EngineSettings(), lambda *said: None)
    assert given == ['def one():\n    """One."""'] * 2
    assert (found.passed, passed) == (1, [True, False])


def test_a_model_that_computes_nothing_finite_is_an_error_and_not_a_wrong_answer(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from freehold.cli import humaneval
    from freehold.settings import EngineSettings

    monkeypatch.setattr(humaneval, "MAX_TOKENS", 16)
    weights = load_file(tiny / "model.safetensors")
    weights["model.norm.weight"][:] = np.nan
    save_file(weights, tiny / "model.safetensors")
    with pytest.raises(EngineError, match="a completion failed"):
        humaneval.complete(tiny, ["def one():"], EngineSettings(threads=1, kv_memory_mb=8), lambda *said: None)


@pytest.mark.parametrize(("passed", "low", "high"), [(0, 0.0, 0.0229), (82, 0.424, 0.576), (164, 0.977, 1.0)])
def test_the_interval_is_wilsons(passed: int, low: float, high: float) -> None:
    found = wilson(passed, 164)
    assert found == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


def test_models_are_compared_problem_by_problem() -> None:
    original = [True] * 30 + [False] * 134
    model = [True] * 24 + [False] * 6 + [True] * 2 + [False] * 132
    found = paired(original, model)
    assert (found.gained, found.lost) == (2, 6)
    assert found.difference == pytest.approx(-4 / 164)
    # by hand: b = 6.5, c = 2.5, n = 166: -4/166 +- 1.96 * sqrt(9 - 16/166) / 166
    assert (found.low, found.high) == (pytest.approx(-0.05933, abs=1e-5), pytest.approx(0.01113, abs=1e-5))


def test_a_model_beside_itself_differs_by_nothing_within_a_narrow_interval() -> None:
    found = paired([True, False] * 82, [True, False] * 82)
    assert (found.gained, found.lost, found.difference) == (0, 0, 0.0)
    assert found.high == -found.low == pytest.approx(1.96 / 166)


POINTS = [
    Point("small", 4.5, 0.10, 0.01),
    Point("worse", 4.6, 0.12, 0.01),
    Point("large", 8.0, 0.01, 0.001),
]


def test_the_frontier_holds_what_no_other_beats() -> None:
    assert [point.name for point in frontier(POINTS)] == ["small", "large"]


def test_the_terminal_plot_shows_every_model_and_capitals_on_the_frontier() -> None:
    text = terminal(POINTS)
    for mark, point in zip("AbC", POINTS, strict=True):
        assert f"{mark}  {point.bits:6.3f} bits  KLD {point.kld:.4f}" in text
    assert "4.50" in text
    assert "8.00 bits" in text


def test_a_picture_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from freehold.cli.plot import png
    from freehold.errors import UsageError

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError) as caught:
        png(POINTS, tmp_path / "x.png", "t")
    assert "freehold[plot]" in str(caught.value.hint)
