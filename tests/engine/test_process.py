"""The engine in a process of its own: it may be killed, and nothing hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.engine import tiny

from freehold.engine.connection import Connection
from freehold.engine.process import Backoff, EngineProcess
from freehold.engine.request import GenerateRequest, TokenOutput
from freehold.errors import ContextLengthError, EngineDownError, FormatError, OverloadedError, UsageError
from freehold.settings import EngineSettings

SETTINGS = EngineSettings(isa="reference", kv_memory_mb=8)
LONG = 900
"""Tokens of output that take the twin long enough to be killed or cancelled in the middle."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model"))


@asynccontextmanager
async def started(model: Path, settings: EngineSettings = SETTINGS) -> AsyncIterator[EngineProcess]:
    process = EngineProcess(model, settings)
    await process.start()
    try:
        yield process
    finally:
        await process.stop()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


async def collect(process: EngineProcess, request: GenerateRequest) -> list[TokenOutput]:
    return [output async for output in process.generate(request)]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is watched is another process
        await asyncio.sleep(0.005)


def test_32_requests_at_once_give_what_the_engine_gives_one_by_one(model: Path) -> None:
    from freehold.engine.runner import Engine

    prompts = tiny.prompts(32)
    settings = EngineSettings(kv_memory_mb=8, threads=2)
    alone = Engine.load(model, settings)
    expected = []
    for prompt in prompts:
        alone.add(tiny.request("a", prompt))
        expected.append(tiny.texts(tiny.drain(alone))["a"])

    async def test() -> None:
        async with started(model, settings) as process:
            many = [collect(process, tiny.request(f"r{i}", prompt)) for i, prompt in enumerate(prompts)]
            given = await asyncio.gather(*many)
            assert [[output.token for output in outputs] for outputs in given] == expected
            assert process.stats.kv_pages_used == 0

    run(test)


def test_facts_come_from_the_other_process(model: Path) -> None:
    async def test() -> None:
        process = EngineProcess(model, SETTINGS)
        assert process.state == "down"
        facts = await process.start()
        assert process.state == "ready"
        assert facts == process.facts
        assert facts.pid != os.getpid()
        os.kill(facts.pid, 0)
        await process.stop()
        assert process.state == "down"
        with pytest.raises(ProcessLookupError):
            os.kill(facts.pid, 0)

    run(test)


def test_a_signal_to_the_whole_group_leaves_the_engine_to_its_owner(model: Path) -> None:
    async def test() -> None:
        async with started(model) as process:
            assert process.facts is not None
            stream = process.generate(tiny.request("r", [1], max_tokens=LONG))
            assert (await anext(stream)).token is not None
            for name in (signal.SIGTERM, signal.SIGINT):
                os.kill(process.facts.pid, name)
            for _ in range(20):
                assert (await anext(stream)).token is not None
            await stream.aclose()
            assert process.state == "ready" and process.stats.restarts == 0

    run(test)


def test_kill_9_raises_at_once_in_every_iterator_and_the_engine_comes_back(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with started(model) as process:
            assert process.facts is not None
            first = process.facts.pid
            streams = [process.generate(tiny.request(f"r{i}", [i], max_tokens=LONG)) for i in range(8)]
            for stream in streams:
                assert (await anext(stream)).token is not None
            os.kill(first, signal.SIGKILL)
            began = asyncio.get_running_loop().time()
            for stream in streams:
                with pytest.raises(EngineDownError, match="not running"):
                    async for _ in stream:
                        pass
            assert asyncio.get_running_loop().time() - began < 1.0
            assert process.state == "restarting"
            with pytest.raises(EngineDownError) as caught:
                await collect(process, tiny.request("meanwhile", [1]))
            assert caught.value.hint is not None
            await until(lambda: process.state == "ready")
            assert process.facts.pid != first
            assert process.stats.restarts == 1
            assert len(await collect(process, tiny.request("after", [1]))) == 12

    run(test)
    assert "the engine process is gone: it died (signal SIGKILL)" in caplog.text
    assert "Unknown child process" not in caplog.text


def test_an_engine_that_was_refused_on_restart_stays_down_and_says_why(tmp_path: Path) -> None:
    async def test() -> None:
        broken = tiny.write(tmp_path / "model")
        async with started(broken) as process:
            assert process.facts is not None
            (broken / "config.json").write_text("{")
            os.kill(process.facts.pid, signal.SIGKILL)
            await until(lambda: process.state == "down")
            with pytest.raises(EngineDownError, match="config"):
                await collect(process, tiny.request("a", [1]))

    run(test)


def test_a_model_that_cannot_be_loaded_is_reported_and_not_tried_again(tmp_path: Path) -> None:
    async def test() -> None:
        process = EngineProcess(tmp_path / "nothing", SETTINGS)
        with pytest.raises(FormatError, match="nothing"):
            await process.start()
        assert process.state == "down"
        assert process.stats.restarts == 0
        await process.stop()

    run(test)


def test_closing_the_iterator_cancels_the_request_and_frees_its_pages(model: Path) -> None:
    async def test() -> None:
        async with started(model) as process:
            async with aclosing(process.generate(tiny.request("a", [1], max_tokens=LONG))) as stream:
                await anext(stream)
                await until(lambda: process.stats.running == 1)
            await until(lambda: process.stats.running == 0)
            assert process.stats.kv_pages_used == 0
            assert process.stats.output_tokens < LONG, "it must have been cancelled, not finished"
            assert len(await collect(process, tiny.request("a", [1]))) == 12

    run(test)


def test_an_id_can_be_used_again_at_once_without_hearing_of_its_past(model: Path) -> None:
    async def test() -> None:
        async with started(model) as process:
            expected = [output.token for output in await collect(process, tiny.request("a", [7, 8]))]
            for _ in range(5):
                async with aclosing(process.generate(tiny.request("a", [1], max_tokens=LONG))) as stream:
                    await anext(stream)
                outputs = await collect(process, tiny.request("a", [7, 8]))
                assert [output.token for output in outputs] == expected
                assert {output.id for output in outputs} == {"a"}

    run(test)


def test_the_engine_process_inherits_no_keys(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FREEHOLD_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "MY_UPSTREAM"):
        monkeypatch.setenv(name, "sk-must-not-travel")

    async def test() -> None:
        async with started(model) as process:
            assert process.facts is not None
            assert "must-not-travel" not in _environment_of(process.facts.pid)

    run(test)


def test_a_failing_supervisor_leaves_nobody_waiting(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with started(model) as process:
            stream = process.generate(tiny.request("a", [1], max_tokens=LONG))
            await anext(stream)
            monkeypatch.setattr(process, "_hand_out", None)
            with pytest.raises(EngineDownError, match="supervisor failed"):
                async for _ in stream:
                    pass
            assert process.state == "down"

    run(test)


def test_cancel_ends_the_iterator_with_a_reason(model: Path) -> None:
    async def test() -> None:
        async with started(model) as process:
            stream = process.generate(tiny.request("a", [1], max_tokens=LONG))
            await anext(stream)
            await process.cancel("a")
            assert [output.finish async for output in stream][-1] == "cancelled"
            await process.cancel("a")

    run(test)


def test_refusals_keep_their_class_and_numbers_across_the_process_boundary(model: Path) -> None:
    async def test() -> None:
        settings = EngineSettings(isa="reference", kv_memory_mb=8, max_batch=1, max_queue=1)
        async with started(model, settings) as process:
            with pytest.raises(ContextLengthError) as caught:
                await collect(process, tiny.request("a", [1] * 2000, max_tokens=None))
            assert (caught.value.limit, caught.value.requested) == (1024, 2001)
            with pytest.raises(UsageError, match="vocabulary"):
                await collect(process, tiny.request("a", [1000]))
            running = process.generate(tiny.request("a", [1], max_tokens=LONG))
            await anext(running)
            waiting = asyncio.create_task(collect(process, tiny.request("b", [1])))
            await until(lambda: process.stats.waiting == 1)
            with pytest.raises(OverloadedError):
                await collect(process, tiny.request("c", [1]))
            await running.aclose()
            assert len(await waiting) == 12

    run(test)


def test_a_prompt_beyond_the_context_is_refused_before_it_is_sent(model: Path) -> None:
    async def test() -> None:
        async with started(model) as process:
            assert process._connection is not None
            sent: list[object] = []
            process._connection.send = sent.append  # type: ignore[method-assign]
            with pytest.raises(ContextLengthError):
                await collect(process, tiny.request("a", [1] * 5_000_000, max_tokens=None))
            del process._connection.send
            assert not sent
            assert await collect(process, tiny.request("a", [1], max_tokens=1))

    run(test)


def test_an_id_that_is_running_is_refused_and_the_first_goes_on(model: Path) -> None:
    async def test() -> None:
        async with started(model) as process:
            first = process.generate(tiny.request("a", [1]))
            await anext(first)
            with pytest.raises(UsageError, match="already running"):
                await collect(process, tiny.request("a", [2]))
            assert len([output async for output in first]) == 11

    run(test)


def test_stop_fails_what_is_open_and_the_process_can_be_started_again(model: Path) -> None:
    async def test() -> None:
        process = EngineProcess(model, SETTINGS)
        await process.start()
        with pytest.raises(UsageError, match="already started"):
            await process.start()
        stream = process.generate(tiny.request("a", [1], max_tokens=LONG))
        await anext(stream)
        await process.stop()
        with pytest.raises(EngineDownError, match="stopped"):
            async for _ in stream:
                pass
        await process.start()
        assert len(await collect(process, tiny.request("a", [1]))) == 12
        await process.stop()
        await process.stop()

    run(test)


def test_the_engine_dies_with_its_owner(model: Path) -> None:
    async def test() -> None:
        script = (
            "import asyncio, os, sys\n"
            "from pathlib import Path\n"
            "from freehold.engine.process import EngineProcess\n"
            "from freehold.settings import EngineSettings\n"
            "async def main():\n"
            "    process = EngineProcess(Path(sys.argv[1]), EngineSettings(isa='reference', kv_memory_mb=8))\n"
            "    print((await process.start()).pid, flush=True)\n"
            "    await asyncio.sleep(3600)\n"
            "asyncio.run(main())\n"
        )
        owner = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(model), stdout=asyncio.subprocess.PIPE
        )
        assert owner.stdout is not None
        pid = int(await owner.stdout.readline())
        os.kill(pid, 0)
        owner.kill()
        await owner.wait()
        await until(lambda: not _alive(pid))

    run(test)


def test_an_engine_deep_in_a_step_dies_with_its_owner_too() -> None:
    async def test() -> None:
        stuck = (
            "import os, time\n"
            "from freehold.engine.worker import die_with_parent\n"
            "die_with_parent(os.getppid())\n"
            "print(os.getpid(), flush=True)\n"
            "time.sleep(3600)\n"
        )
        owner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {stuck!r}])"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", owner, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        pid = int(await process.stdout.readline())
        assert _alive(pid)
        process.kill()
        await process.wait()
        await until(lambda: not _alive(pid))

    run(test)


def _environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_that_talks_nonsense_is_killed_and_replaced(model: Path) -> None:
    async def test() -> None:
        async with started(model) as process:
            assert process.facts is not None
            first = process.facts.pid
            connection = process._connection
            assert connection is not None
            stream = process.generate(tiny.request("a", [1], max_tokens=LONG))
            await anext(stream)
            connection._reader.feed_data(b"\xff\xff\xff\xff")
            with pytest.raises(EngineDownError, match="nonsense"):
                async for _ in stream:
                    pass
            await until(lambda: process.state == "ready")
            assert not _alive(first)

    run(test)


def test_an_engine_that_stands_still_is_killed_and_replaced(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with started(model, replace(SETTINGS, stall_seconds=1.0)) as process:
            assert process.facts is not None
            first = process.facts.pid
            stream = process.generate(tiny.request("a", [1], max_tokens=LONG))
            await anext(stream)
            os.kill(first, signal.SIGSTOP)  # alive, and answers nothing
            with pytest.raises(EngineDownError, match="it stood still"):
                async for _ in stream:
                    pass
            await until(lambda: process.state == "ready")
            assert not _alive(first)
            assert len(await collect(process, tiny.request("after", [1]))) == 12

    run(test)
    assert "the engine process is gone: it stood still for" in caplog.text and "SIGKILL" in caplog.text


def test_an_idle_engine_that_stands_still_is_replaced_before_anybody_asks(model: Path) -> None:
    async def test() -> None:
        async with started(model, replace(SETTINGS, stall_seconds=1.0)) as process:
            assert process.facts is not None
            os.kill(process.facts.pid, signal.SIGSTOP)
            await until(lambda: process.state == "ready" and process.stats.restarts == 1)

    run(test)


def test_one_that_hangs_while_it_loads_is_given_up_and_tried_again(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened, stopped = Connection.open, 0

    async def stop_the_first_two() -> Connection:
        nonlocal stopped
        connection = await opened()
        if stopped < 2:
            stopped += 1
            os.kill(connection.process.pid, signal.SIGSTOP)
        return connection

    async def test() -> None:
        settings = replace(SETTINGS, stall_seconds=0.05)
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "open", stop_the_first_two)
            with pytest.raises(EngineDownError, match="hung while loading the model: it stood still"):
                await EngineProcess(model, settings).start()
        async with started(model, SETTINGS) as process:
            process._settings = settings
            assert process.facts is not None
            with monkeypatch.context() as patch:
                patch.setattr(Connection, "open", stop_the_first_two)
                os.kill(process.facts.pid, signal.SIGKILL)
                await until(lambda: process.stats.restarts >= 2 and process.state == "ready")

    run(test)
    assert stopped == 2 and "hung while loading" in caplog.text


def test_a_busy_engine_whose_steps_take_their_time_is_left_in_peace(model: Path) -> None:
    async def test() -> None:
        async with started(model, replace(SETTINGS, stall_seconds=1.0, step_seconds=30.0)) as process:
            outputs = await collect(process, tiny.request("long", list(range(1, 60)), max_tokens=300))
            assert len(outputs) == 300 and process.stats.restarts == 0

    run(test)


def test_backoff_doubles_to_five_seconds_and_starts_again_after_a_healthy_minute() -> None:
    backoff = Backoff()
    assert [backoff.after(1.0) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert [backoff.after(61.0), backoff.after(1.0)] == [0.1, 0.2]


def test_the_workers_words_are_in_the_log(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    from freehold.engine import worker

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"\x01\x00\x00\x00\xc1")
        assert worker.Worker(theirs, worker.load_engine).run() == worker.EXIT_PROTOCOL
    assert "not a frame" in caplog.text
