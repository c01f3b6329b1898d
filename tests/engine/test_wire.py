"""Frames between the engine process and its owner: whole however the stream is cut, refused when hostile."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine import tiny

from freehold import errors
from freehold.engine import wire
from freehold.engine.request import EngineStats, TokenOutput
from freehold.engine.runner import Engine
from freehold.engine.worker import EXIT_BROKEN, EXIT_LOAD, EXIT_PROTOCOL, MAX_FAILED_STEPS, Worker
from freehold.errors import ContextLengthError, FreeholdError, UpstreamError
from freehold.settings import EngineSettings

MESSAGES: list[wire.ToEngine] = [
    wire.Load("model", EngineSettings(threads=3)),
    wire.Add(tiny.request("a", [1, 2, 3], logit_bias={1: 2.0}, stop_ids=frozenset({4}), seed=9)),
    wire.Cancel("a"),
    wire.Stop(),
]


@given(st.lists(st.integers(1, 50), min_size=1))
def test_frames_arrive_whole_however_the_stream_is_cut(cuts: list[int]) -> None:
    stream = b"".join(wire.encode(message) for message in MESSAGES)
    buffer, bodies, place = wire.FrameBuffer(), [], 0
    while place < len(stream):
        size = cuts[place % len(cuts)]
        bodies += buffer.feed(stream[place : place + size])
        place += size
    assert [wire.decode_to_engine(body) for body in bodies] == MESSAGES


def test_outputs_survive_the_way_back() -> None:
    message = wire.Outputs(
        [TokenOutput("a", 1, -0.5, [(1, -0.5)]), TokenOutput("b", None, finish="cancelled")], EngineStats(1)
    )
    assert wire.decode_from_engine(wire.encode(message)[wire.HEADER.size :]) == message


def test_a_header_beyond_the_bound_is_refused_before_anything_is_stored() -> None:
    with pytest.raises(wire.FrameError, match="at most"):
        wire.FrameBuffer().feed(struct.pack("<I", wire.MAX_FRAME + 1))
    with pytest.raises(wire.FrameError, match="at most"):
        wire.encode(wire.Cancel("x" * (wire.MAX_FRAME + 1)))


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused_as_a_frame(body: bytes) -> None:
    for decode in (wire.decode_to_engine, wire.decode_from_engine):
        try:
            decode(body)
        except wire.FrameError:
            continue


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_frame_with_one_byte_changed_decodes_or_is_refused(place: int, value: int) -> None:
    body = bytearray(wire.encode(MESSAGES[1])[wire.HEADER.size :])
    body[place % len(body)] = value
    try:
        wire.decode_to_engine(bytes(body))
    except wire.FrameError:
        return


def test_a_request_that_breaks_the_rules_of_sampling_is_refused_as_a_frame() -> None:
    good = wire.encode(wire.Add(tiny.request("a", [1], top_p=0.5)))[wire.HEADER.size :]
    bad = good.replace(struct.pack(">d", 0.5), struct.pack(">d", 1.5))
    assert bad != good
    with pytest.raises(wire.FrameError, match="top_p"):
        wire.decode_to_engine(bad)


def _every_error() -> Iterator[type[FreeholdError]]:
    for value in vars(errors).values():
        if (
            isinstance(value, type)
            and issubclass(value, FreeholdError)
            and value not in (ContextLengthError, UpstreamError)
        ):
            yield value


@pytest.mark.parametrize("cls", list(_every_error()))
def test_every_error_keeps_its_class_message_and_hint(cls: type[FreeholdError]) -> None:
    error = wire.Failure.of("a", cls("what", hint="how")).error()
    assert (type(error), error.message, error.hint) == (cls, "what", "how")


def test_a_failure_that_names_no_error_of_ours_is_an_engine_error() -> None:
    for kind in ("annotations", "SystemExit", "nothing", "UpstreamError"):
        assert type(wire.Failure("a", kind, "what").error()) is errors.EngineError


class _Owner:
    """The other end of a worker that runs in a thread."""

    def __init__(self, engine: Engine | FreeholdError) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(30)
        self.code: int | None = None
        self._buffer, self._bodies = wire.FrameBuffer(), list[bytes]()

        def load(_: wire.Load) -> Engine:
            if isinstance(engine, FreeholdError):
                raise engine
            return engine

        def serve() -> None:
            with theirs:
                self.code = Worker(theirs, load).run()

        self.thread = threading.Thread(target=serve)
        self.thread.start()

    def send(self, message: wire.ToEngine) -> None:
        self.socket.sendall(wire.encode(message))

    def receive(self) -> wire.FromEngine:
        while not self._bodies:
            data = self.socket.recv(4096)
            assert data, "the worker is gone"
            self._bodies += self._buffer.feed(data)
        return wire.decode_from_engine(self._bodies.pop(0))

    def ended(self) -> int | None:
        self.socket.close()
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.code


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine.load(tiny.write(tmp_path), EngineSettings(isa="reference", kv_memory_mb=8))


def test_a_worker_ends_well_when_told_to_and_when_its_owner_is_gone(engine: Engine) -> None:
    for told in (True, False):
        owner = _Owner(engine)
        owner.send(MESSAGES[0])
        assert isinstance(owner.receive(), wire.Ready)
        if told:
            owner.send(wire.Stop())
            owner.thread.join(30)
        assert owner.ended() == 0


def test_all_tokens_of_a_step_come_in_one_frame(engine: Engine) -> None:
    owner = _Owner(engine)
    owner.send(MESSAGES[0])
    owner.receive()
    requests = [tiny.request(f"r{i}", [i + 1], max_tokens=5) for i in range(4)]
    owner.socket.sendall(b"".join(wire.encode(wire.Add(request)) for request in requests))
    frames = []
    while sum(len(frame.outputs) for frame in frames) < 20:
        frame = owner.receive()
        assert isinstance(frame, wire.Outputs)
        frames.append(frame)
    assert [len(frame.outputs) for frame in frames] == [4] * 5
    assert frames[-1].stats.running == 0
    assert owner.ended() == 0


def test_a_worker_reports_what_loading_refused() -> None:
    owner = _Owner(errors.UnsupportedError("no such family", hint="try another"))
    owner.send(MESSAGES[0])
    failure = owner.receive()
    assert isinstance(failure, wire.Failure)
    assert isinstance(failure.error(), errors.UnsupportedError)
    assert owner.ended() == EXIT_LOAD


@pytest.mark.parametrize("nonsense", [wire.encode(wire.Cancel("a")), b"\xff\xff\xff\xff", b"\x01\x00\x00\x00\xc1"])
def test_a_worker_that_hears_nonsense_first_gives_up(nonsense: bytes) -> None:
    owner = _Owner(errors.EngineError("never asked"))
    owner.socket.sendall(nonsense)
    owner.thread.join(30)
    assert owner.ended() == EXIT_PROTOCOL


def test_failing_steps_fail_their_requests_and_a_broken_engine_exits(engine: Engine) -> None:
    class Broken:
        steps_alone = 0

        def run(self, step: object) -> None:
            raise RuntimeError("the kernel fell over")

    engine.executor = Broken()  # type: ignore[assignment]
    owner = _Owner(engine)
    owner.send(MESSAGES[0])
    owner.receive()
    for number in range(MAX_FAILED_STEPS):
        owner.send(wire.Add(tiny.request(f"r{number}", [1])))
        frame = owner.receive()
        assert isinstance(frame, wire.Outputs)
        assert [(output.id, output.finish) for output in frame.outputs] == [(f"r{number}", "error")]
        assert "the kernel fell over" in (frame.outputs[0].error or "")
    owner.thread.join(30)
    assert owner.ended() == EXIT_BROKEN
