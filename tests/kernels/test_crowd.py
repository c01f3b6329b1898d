"""When one thread goes on alone, because other programs want the processors too."""

from __future__ import annotations

import pytest

from freehold.kernels._native import Crowd

STEP = 0.003


def steps(crowd: Crowd, begin: float, count: int, share: float) -> float:
    """Short runs by all, each of which lost a share of its time; the time after them."""
    for i in range(count):
        crowd.note(begin + i * STEP, STEP, share * STEP)
    return begin + count * STEP


def test_on_a_quiet_machine_all_work_together() -> None:
    crowd = Crowd()
    now = steps(crowd, 100.0, 1000, 0.05)
    assert not crowd.alone(now)


def test_one_slow_step_is_no_crowd() -> None:
    crowd = Crowd()
    now = steps(crowd, 100.0, 50, 0.02)
    crowd.note(now, 0.1, 0.097)
    assert not crowd.alone(now)


def test_a_team_that_keeps_losing_its_processors_leaves_the_work_to_one_for_a_while() -> None:
    crowd = Crowd()
    now = steps(crowd, 100.0, 2, 0.9)
    assert crowd.alone(now) and crowd.alone(now + 0.2) and not crowd.alone(now + 0.3)


@pytest.mark.parametrize("tries", range(1, 8))
def test_all_try_again_ever_more_rarely_while_the_machine_is_crowded(tries: int) -> None:
    crowd = Crowd()
    now = steps(crowd, 100.0, 2, 0.9) - STEP  # when the last of them was noted
    pause = 0.25
    for _ in range(tries):
        now += pause
        assert not crowd.alone(now)
        crowd.note(now, STEP, 0.9 * STEP)
        pause = min(2 * pause, 4.0)
        assert crowd.alone(now + 0.99 * pause) and not crowd.alone(now + 1.01 * pause)


def test_one_quiet_try_brings_all_back() -> None:
    crowd = Crowd()
    now = steps(crowd, 100.0, 2, 0.9) + 0.3
    crowd.note(now, STEP, 0.01 * STEP)
    assert not crowd.alone(now)
    now = steps(crowd, now, 2, 0.5)
    assert not crowd.alone(now)  # it takes more than a moment to be a crowd again
