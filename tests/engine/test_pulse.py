"""A hanging worker is told from a busy one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from freehold.engine.pulse import Pulse, cpu_seconds, runnable
from freehold.settings import EngineSettings


class Machine:
    """A clock, and a process whose CPU time goes on with it when it is `busy`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.used: float | None = 7.0
        self.busy = True
        self.starved = False

    def clock(self) -> float:
        return self.now

    def cpu(self, pid: int) -> float | None:
        return self.used

    def waits(self, pid: int) -> bool:
        return self.busy or self.starved

    def passes(self, seconds: float) -> None:
        self.now += seconds
        if self.busy and self.used is not None:
            self.used += seconds


def pulse(machine: Machine, *, step: float = 60.0, stall: float = 5.0) -> Pulse:
    settings = EngineSettings(step_seconds=step, stall_seconds=stall)
    return Pulse(1, settings, machine.clock, machine.cpu, machine.waits)


def beats(found: Pulse, machine: Machine, most: int = 200) -> tuple[int, str | None]:
    """After how many beats without a word it counts as hanging, and why."""
    assert found.ask() and not found.ask()
    for beat in range(1, most + 1):
        machine.passes(found.beat)
        if (reason := found.look()) is not None:
            return beat, reason
    return most, None


def test_one_that_stands_still_is_known_after_seconds() -> None:
    machine = Machine()
    machine.busy = False
    assert beats(pulse(machine), machine) == (5, "it stood still for 5 s")


def test_one_that_waits_for_a_processor_does_not_stand_still() -> None:
    machine = Machine()
    machine.busy, machine.starved = False, True
    assert beats(pulse(machine), machine) == (60, "it answered nothing for 60 s")


def test_one_that_computes_has_as_long_as_the_longest_step() -> None:
    machine = Machine()
    assert beats(pulse(machine), machine) == (60, "it answered nothing for 60 s")


def test_a_moment_of_work_now_and_then_is_no_standstill() -> None:
    machine, found = Machine(), None
    found = pulse(machine)
    found.ask()
    for beat in range(50):
        machine.busy = beat % 4 == 0
        machine.passes(1.0)
        assert found.look() is None


def test_a_word_between_two_steps_is_enough() -> None:
    machine = Machine()
    machine.busy, found = False, pulse(machine)
    for _ in range(20):
        assert found.ask()
        machine.passes(1.0)
        found.heard()
        assert found.look() is None


def test_time_in_which_we_ourselves_did_not_run_is_not_held_against_it() -> None:
    machine = Machine()
    machine.busy, found = False, pulse(machine)
    found.ask()
    machine.passes(3600.0)  # the whole machine slept; its word lies unread in the socket
    assert found.look() is None


def test_where_nobody_can_tell_cpu_time_only_the_longest_step_counts() -> None:
    machine = Machine()
    machine.used = None
    assert beats(pulse(machine), machine) == (60, "it answered nothing for 60 s")


@pytest.mark.parametrize(("step", "stall", "wanted"), [(0, 0, False), (9, 0, True), (0, 9, True)])
def test_each_limit_can_be_switched_off(step: float, stall: float, wanted: bool) -> None:
    machine = Machine()
    machine.busy = stall == 0
    found = pulse(machine, step=step, stall=stall)
    assert found.wanted is wanted
    assert (beats(found, machine)[1] is not None) is wanted


def test_a_quick_limit_makes_a_quick_pulse() -> None:
    assert pulse(Machine(), stall=0.2).beat == pytest.approx(0.05)


def test_the_cpu_time_of_a_process_is_that_of_the_kernel() -> None:
    before, times = cpu_seconds(os.getpid()), os.times()
    assert before is not None and before == pytest.approx(times.user + times.system, abs=0.5)
    assert cpu_seconds(2**22 + 1) is None  # beyond the largest pid


def test_a_process_is_runnable_unless_it_sleeps_or_was_stopped() -> None:
    assert runnable(os.getpid())
    assert not runnable(2**22 + 1)
    words = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        try:
            assert runnable(busy.pid)
            busy.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, busy.pid, os.WSTOPPED)
            assert not runnable(busy.pid)
        finally:
            busy.kill()
