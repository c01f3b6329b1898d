"""A backend that fails is left alone, tried again soon, and asked rarely when it refuses our account."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from freehold.errors import SettingError, UpstreamError
from freehold.gateway.alerts import Alerts
from freehold.gateway.backends.webhook import Webhook
from freehold.gateway.breaker import Breaker
from freehold.gateway.pings import Pings
from freehold.gateway.quarantine import FILE, Quarantine, QuarantineStore, state_directory
from freehold.settings import BreakerSettings


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def breaker(clock: Clock, store: QuarantineStore | None = None, **given: Any) -> Breaker:
    return Breaker(BreakerSettings(**given), store, clock=clock, wall=clock)


def test_a_minute_of_outage_costs_six_requests_at_most_and_ends_within_five_seconds_of_recovery() -> None:
    for ping_works in (False, True):
        clock = Clock(0.0)
        found = breaker(clock)
        calls, back = [], None
        while back is None:
            verdict = found.allows("one")
            if verdict.allowed and found.probe("one"):
                if clock.now < 60:
                    calls.append(clock.now)
                    found.failed("one", "transport", trial=verdict.trial)
                else:
                    found.succeeded("one")
                    back = clock.now
            elif ping_works and clock.now >= 60 and "one" in found.pingable():
                found.reachable("one")
            clock.now += 0.1
        assert len(calls) <= 6, calls
        assert back < 65
        assert found.state("one") == "closed"


@pytest.mark.parametrize("minutes", [0.3, 0.8, 3, 30])
def test_with_pings_recovery_is_seen_at_once_whenever_it_comes(minutes: float) -> None:
    clock = Clock(0.0)
    found = breaker(clock)
    while not found.allows("one").allowed or clock.now < minutes * 60:
        verdict = found.allows("one")
        if verdict.allowed and found.probe("one"):
            found.failed("one", "overload", trial=verdict.trial)
        if clock.now >= minutes * 60 and "one" in found.pingable():
            found.reachable("one")
        clock.now += 0.5
    assert clock.now <= minutes * 60 + 1


def test_a_ping_that_misleads_is_believed_only_once() -> None:
    clock = Clock()
    found = breaker(clock)
    found.failed("one", "overload")
    found.reachable("one")
    assert found.allows("one").trial and found.probe("one")
    found.failed("one", "overload", trial=True)
    assert found.pingable() == []
    found.reachable("one")
    assert not found.allows("one").allowed
    clock.now += 4
    assert found.probe("one")
    found.succeeded("one")
    found.failed("one", "overload")
    assert found.pingable() == ["one"]  # another outage, another belief


def test_a_half_open_breaker_lets_one_request_through_at_a_time() -> None:
    clock = Clock()
    found = breaker(clock)
    found.failed("one", "transport")
    assert not found.probe("one") and found.state("one") == "open"
    clock.now += 2
    assert found.state("one") == "half-open"
    assert [found.probe("one") for _ in range(3)] == [True, False, False]
    found.abandoned("one")  # its client left
    assert [found.probe("one") for _ in range(2)] == [True, False]
    found.failed("one", "transport")  # of a request from before the outage: the trial is still under way
    assert not found.probe("one")
    found.heard("one")
    assert [found.probe("one") for _ in range(3)] == [True, True, True]


def test_a_first_token_proves_nothing_of_a_backend_that_breaks_later() -> None:
    clock = Clock()
    found = breaker(clock)
    found.failed("one", "transport", late=True)
    clock.now += 2
    assert found.probe("one")
    found.heard("one")
    assert not found.probe("one")
    found.succeeded("one")
    assert found.state("one") == "closed"


def test_failures_that_are_the_requests_own_change_nothing() -> None:
    found = breaker(Clock())
    for kind in ("invalid", "context", "content_policy", "capability", "engine_down", "internal"):
        found.failed("one", kind)
    assert found.allows("one").allowed and found.state("one") == "closed"


def test_a_breaker_can_be_told_to_wait_for_several_failures_in_a_row() -> None:
    found = breaker(Clock(), open_after=3)
    for _ in range(2):
        found.failed("one", "transport")
    found.succeeded("one")
    for _ in range(2):
        found.failed("one", "transport")
        assert found.allows("one").allowed
    found.failed("one", "transport")
    assert not found.allows("one").allowed and found.failing("one") == "transport"


def test_retry_after_is_kept_to_but_not_for_ever_and_no_ping_shortens_it() -> None:
    clock = Clock()
    found = breaker(clock)
    found.failed("one", "rate", retry_after=30)
    found.reachable("one")
    assert found.pingable() == []
    clock.now += 29
    assert not found.allows("one").allowed and found.allows("one").final
    clock.now += 1
    assert found.allows("one").trial
    found.failed("one", "rate", retry_after=1e12, trial=True)
    clock.now += 300
    assert found.allows("one").allowed


def test_a_spent_rate_is_respected_ahead_of_time() -> None:
    clock = Clock()
    found = breaker(clock)
    found.rest("one", 6)
    assert found.state("one") == "resting" and "rate" in found.allows("one").reason
    assert found.failing("one") is None
    clock.now += 6
    assert found.allows("one").allowed and not found.allows("one").trial


@pytest.mark.parametrize("kind", ["banned", "billing", "region", "auth"])
def test_a_quarantined_backend_gets_one_request_per_interval(kind: str) -> None:
    clock = Clock()
    told: list[Any] = []
    found = Breaker(BreakerSettings(), None, lambda *event: told.append(event), clock=clock, wall=clock)
    calls = 0
    for _ in range(60 * 60 * 3 - 60):
        verdict = found.allows("one")
        if verdict.allowed and found.probe("one"):
            calls += 1
            found.failed("one", kind, trial=verdict.trial)
        found.reachable("one")  # no ping ends a quarantine
        clock.now += 1
    assert calls == 6  # three hours, one in 30 minutes
    assert told == [("quarantined", "one", kind, 1800.0)]
    verdict = found.allows("one")
    assert verdict.final and kind in verdict.reason and "next probe in" in verdict.reason
    clock.now += 1800
    assert found.probe("one")
    found.succeeded("one")
    assert told[1:] == [("restored", "one", kind, 0.0)]
    assert found.state("one") == "closed"


def test_a_quarantine_is_remembered_and_its_probe_too(tmp_path: Path) -> None:
    clock = Clock()
    told: list[Any] = []
    store = QuarantineStore(tmp_path / "state")
    breaker(clock, store).failed("one", "banned")

    def restarted() -> Breaker:
        return Breaker(BreakerSettings(), store, lambda *event: told.append(event), clock=Clock(5.0), wall=clock)

    assert "banned" in restarted().allows("one").reason
    clock.now += 1801
    assert restarted().probe("one")  # and crashes before the answer
    assert not restarted().allows("one").allowed
    restarted().failed("one", "banned")
    assert told == []  # one alert per event, not one per restart
    restarted().succeeded("one")
    assert restarted().allows("one").allowed and json.loads((tmp_path / "state" / FILE).read_bytes()) == {}


def test_a_quarantine_survives_kill_9(tmp_path: Path) -> None:
    program = """if True:
        import os, signal, sys
        from pathlib import Path
        from freehold.gateway.breaker import Breaker
        from freehold.gateway.quarantine import QuarantineStore
        found = Breaker(None, QuarantineStore(Path(sys.argv[1])))
        for i in range(20):
            found.failed(f"backend-{i}", "billing")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    found = QuarantineStore(tmp_path).load()
    assert set(found) == {f"backend-{i}" for i in range(20)} and found["backend-0"].kind == "billing"
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_quarantine_is_on_the_disk_before_anybody_relies_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    flush, put = os.fsync, Path.replace

    def replaced(path: Path, target: Path) -> Path:
        steps.append("replace")
        return put(path, target)

    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("flush"), flush(handle))[1])
    monkeypatch.setattr(Path, "replace", replaced)
    QuarantineStore(tmp_path).save({"one": Quarantine("auth", 1.0, 2.0)})
    assert steps == ["flush", "replace", "flush"]  # the file, then its name


def test_a_clock_that_was_set_back_prolongs_no_quarantine_beyond_its_interval(tmp_path: Path) -> None:
    store = QuarantineStore(tmp_path)
    store.save({"one": Quarantine("banned", 2e9, 2e9 + 1800)})
    assert breaker(Clock(1e9), store).allows("one").wait == 1800


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b'{"one": {"kind": 3}}', b'{"a": {"evil": 1}}'])
def test_a_broken_state_file_is_a_warning_not_an_end(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(content)
    store = QuarantineStore(tmp_path)
    assert store.load() == {} and "quarantine" in caplog.text
    store.save({"one": Quarantine("auth", 1.0, 2.0)})
    assert list(store.load()) == ["one"]


def test_a_disk_that_refuses_costs_the_memory_not_the_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    found = breaker(Clock(), QuarantineStore(tmp_path / "file"))
    found.failed("one", "banned")
    assert found.state("one") == "quarantined" and "a restart will forget" in caplog.text


def test_state_lives_where_users_expect_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_directory() == tmp_path / "freehold"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_directory() == tmp_path / ".local" / "state" / "freehold"
    assert state_directory("~/x") == tmp_path / "x"


def test_an_alert_reaches_log_metric_and_webhook_once(caplog: pytest.LogCaptureFixture) -> None:
    counted: list[Any] = []
    posted: list[Any] = []

    async def run() -> None:
        async def send(told: dict[str, Any]) -> None:
            posted.append(told)

        alerts = Alerts(lambda *what: counted.append(what), send, wall=lambda: 50.0)
        found = Breaker(BreakerSettings(), None, alerts)
        for _ in range(100):
            found.failed("one", "banned")
        found.succeeded("one")
        await alerts.close()

    asyncio.run(run())
    assert counted == [("one", "quarantined"), ("one", "restored")]
    assert posted == [
        {"event": "quarantined", "backend": "one", "kind": "banned", "time": 50.0, "next_probe": 1850.0},
        {"event": "restored", "backend": "one", "kind": "banned", "time": 50.0},
    ]
    assert caplog.text.count("ALERT") == 2


def test_a_webhook_that_hangs_or_refuses_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    from tests.gateway.fakes import provider, response

    async def tell(url: str, seconds: float) -> None:
        alerts = Alerts(send=Webhook(url, seconds), seconds=seconds)
        alerts("quarantined", "one", "banned", 1800.0)
        async with asyncio.timeout(10):
            await alerts.close()

    with caplog.at_level(logging.INFO, "freehold"), provider([None], [response(b"", "500 Oops")]) as found:
        url = found.url + "/a-secret"
        asyncio.run(tell(url, 1))
        asyncio.run(tell(url, 5))
    asyncio.run(tell(url, 5))  # nobody listens any more
    assert caplog.text.count("did not take 'one quarantined'") == 3
    assert "a-secret" not in "".join(r.getMessage() for r in caplog.records if r.name.startswith("freehold"))
    head, body = found.requests[1]
    assert head.startswith(b"POST /v1/a-secret ") and json.loads(body)["backend"] == "one"


def test_a_webhook_address_must_be_one() -> None:
    with pytest.raises(SettingError, match="webhook_url"):
        Webhook("file:///etc/passwd", 1)


def test_pings_run_only_while_somebody_is_left_alone_and_stop_when_he_is_back() -> None:
    class Backend:
        name = "one"

        def __init__(self) -> None:
            self.asked = 0

        async def ping(self) -> None:
            self.asked += 1
            if self.asked < 3:
                raise UpstreamError("down", kind="transport")

    async def run() -> tuple[int, bool]:
        found, backend = Breaker(BreakerSettings(first_wait_seconds=60)), Backend()
        pings = Pings(found, lambda: [backend], 0.01)
        pings.wake()
        await asyncio.sleep(0)
        assert backend.asked == 0  # nobody has failed
        found.failed("one", "transport")
        pings.wake()
        pings.wake()
        async with asyncio.timeout(10):
            assert pings._task is not None
            await pings._task
        await pings.close()
        return backend.asked, found.allows("one").trial

    assert asyncio.run(run()) == (3, True)
