"""Traces, as a real collector on loopback receives them over OTLP/HTTP."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes, url_attributes
from tests.gateway import fakes, scripted
from tests.gateway.fakes import provider, recorded, response

from freehold.database import Database
from freehold.errors import SettingError
from freehold.gateway import tracing, tracing_names
from freehold.gateway.budget import Budget
from freehold.gateway.service import Gateway
from freehold.settings import UpstreamSettings

SECRET = "the-secret-of-the-prompt"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "description": SECRET}}}
GOOD = response(recorded("openai_chat_stream.txt"))


class Collector:
    """Takes what exporters send."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        found = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                found.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def resources(self) -> list[Any]:
        return [spans for body in self.bodies for spans in ExportTraceServiceRequest.FromString(body).resource_spans]

    def spans(self) -> list[Span]:
        return [span for found in self.resources() for scope in found.scope_spans for span in scope.spans]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    found = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
    yield found
    found.close()


def attributes(found: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        if kind == "array_value":
            return [plain(one) for one in value.array_value.values]
        return getattr(value, kind)

    return {pair.key: plain(pair.value) for pair in found.attributes}


def asking(live: fakes.Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0)


def test_a_request_is_a_span_with_one_below_it_for_each_backend_that_was_asked(
    directory: Path, collector: Collector, tmp_path: Path
) -> None:
    budget = Budget(Database(f"sqlite:///{tmp_path / 'x.db'}"))  # its measuring and ours must bear each other
    gateway = Gateway(fakes.core(directory, SECRET), budget=budget)
    with fakes.live(gateway) as live, asking(live) as client:
        stream = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "system", "content": SECRET}, {"role": "user", "content": SECRET}],
            tools=[TOOL],  # type: ignore[list-item]
            stop=[SECRET + "!"],
            temperature=0.5,
            max_tokens=200,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"},
        )
        said = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert said == SECRET
    server, attempt = sorted(collector.spans(), key=lambda span: span.kind != Span.SPAN_KIND_SERVER)
    assert server.trace_id == attempt.trace_id == bytes.fromhex("ab" * 16)
    assert server.parent_span_id == bytes.fromhex("cd" * 8) and attempt.parent_span_id == server.span_id
    assert server.name == "POST /v1/chat/completions" and attempt.name == "chat tiny"
    told, asked = attributes(server), attributes(attempt)
    assert told["http.response.status_code"] == 200 and told["freehold.backend"] == "local"
    assert told["freehold.reason"] == "core" and told["freehold.request.id"] == asked["freehold.request.id"]
    assert asked["gen_ai.provider.name"] == "freehold" and asked["gen_ai.request.temperature"] == 0.5
    assert asked["gen_ai.response.finish_reasons"] == ["stop"] and asked["gen_ai.request.max_tokens"] == 200
    assert asked["gen_ai.usage.input_tokens"] > 0 and asked["gen_ai.usage.output_tokens"] == len(SECRET) + 1
    assert asked["gen_ai.response.time_to_first_chunk"] > 0
    assert server.status.code == attempt.status.code == Status.STATUS_CODE_UNSET
    assert SECRET.encode() not in b"".join(collector.bodies)


def test_a_failover_is_two_spans_and_the_first_says_by_its_kind_why_it_failed(
    directory: Path, collector: Collector
) -> None:
    words = b'{"error": {"message": "You said: ' + SECRET.encode() + b'", "code": "rate_limit_exceeded"}}'
    refusal = response(words, "429 Too Many Requests", "application/json")
    with provider([refusal]) as one, provider([GOOD]) as two:
        upstreams = [
            UpstreamSettings(name="one", base_url=one.url, model="m-1", provider="groq", key_env=""),
            UpstreamSettings(name="two", base_url=two.url, model="m-2"),
        ]
        standbys = [fakes.upstream(u.base_url, u.name, u.model) for u in upstreams]
        with fakes.live(Gateway(None, standbys), upstreams=upstreams) as live, asking(live) as client:
            client.chat.completions.create(model="default", messages=[{"role": "user", "content": SECRET}])
    spans = {span.name: span for span in collector.spans()}
    assert set(spans) == {"POST /v1/chat/completions", "chat m-1", "chat m-2"}
    first, second = attributes(spans["chat m-1"]), attributes(spans["chat m-2"])
    assert first["error.type"] == "rate" and spans["chat m-1"].status.code == Status.STATUS_CODE_ERROR
    assert spans["chat m-1"].status.message == "" and not spans["chat m-1"].events
    assert first["gen_ai.provider.name"] == "groq" and second["gen_ai.provider.name"] == "two"
    assert spans["chat m-2"].kind == Span.SPAN_KIND_CLIENT
    assert "error.type" not in second
    told = attributes(spans["POST /v1/chat/completions"])
    assert told["freehold.backend"] == "two" and told["freehold.reason"] == "standby after one: rate"
    assert SECRET.encode() not in b"".join(collector.bodies)


def test_refusals_and_departures_are_told_too(directory: Path, collector: Collector) -> None:
    with fakes.live(Gateway(fakes.core(directory, SECRET, held=True))) as live, asking(live) as client:
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": SECRET}])
        with client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": SECRET}], stream=True
        ) as stream:
            next(iter(stream))
        core = live.gateway.core
        assert core is not None
        live.until(lambda: len(core.engine.left) == 1)  # type: ignore[attr-defined]
        httpx2.get(live.url + "/health")
    spans = {attributes(span).get("http.response.status_code", span.name): span for span in collector.spans()}
    assert set(spans) == {404, 200, "chat tiny"}  # and none for /health
    assert spans[404].status.code == Status.STATUS_CODE_UNSET  # the client's mistake, not ours
    assert attributes(spans[200])["error.type"] == attributes(spans["chat tiny"])["error.type"] == "left"


def test_embeddings_are_told_without_their_texts(collector: Collector) -> None:
    gateway, _ = scripted.gateway([])
    with fakes.live(gateway) as live, asking(live) as client:
        client.embeddings.create(model="stage.play", input=[SECRET, "b"], dimensions=3)
    told = {span.name: attributes(span) for span in collector.spans()}["embeddings stage.play"]
    assert told["gen_ai.operation.name"] == "embeddings" and told["gen_ai.embeddings.dimension.count"] == 3
    assert told["gen_ai.usage.input_tokens"] == len(SECRET) + 1 and told["freehold.backend"] == "stage"
    assert SECRET.encode() not in b"".join(collector.bodies)


def test_the_service_is_called_as_the_environment_says(
    directory: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for own in ({}, {"OTEL_SERVICE_NAME": "ours"}, {"OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs,team=x"}):
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        with fakes.live(Gateway(fakes.core(directory))) as live:
            httpx2.get(live.url + "/v1/models")
        names.append(attributes(collector.resources()[-1].resource)["service.name"])
        for name in own:
            monkeypatch.delenv(name)
    assert names == ["freehold", "ours", "theirs"]


def test_our_names_are_those_of_the_conventions() -> None:
    known = {
        value
        for module in (gen_ai_attributes, error_attributes, http_attributes, url_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    ours = {value for name, value in vars(tracing_names).items() if name.isupper() and isinstance(value, str)}
    ours |= {tracing_names.SAMPLING + name for name in tracing_names.SAMPLED}
    strangers = {name for name in ours if "." in name and not name.endswith(".")} - known
    assert strangers == {name for name in strangers if name.startswith("freehold.")}
    providers = {one.value for one in gen_ai_attributes.GenAiProviderNameValues}
    assert set(tracing_names.PROVIDERS.values()) <= providers


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
    ],
)
def test_the_standard_variables_say_whether(environment: dict[str, str], wanted: bool) -> None:
    assert tracing.wanted(environment) is wanted


def test_an_exporter_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(SettingError, match=r"among .*otlp_proto_http.*, found 'zipkin'") as caught:
        tracing.Tracing.of({"OTEL_TRACES_EXPORTER": "zipkin"})
    assert "OTEL_EXPORTER_OTLP_PROTOCOL" in (caught.value.hint or "")


def test_without_the_variables_nothing_of_it_is_imported() -> None:
    code = (
        "import sys; from freehold.gateway.app import create_app; from freehold.gateway.service import Gateway; "
        "from freehold.settings import Settings; create_app(Settings(), Gateway(None)); "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    clean = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_without_the_extra_the_log_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with caplog.at_level("WARNING", logger="freehold.gateway"):
        assert tracing.Tracing.of({"OTEL_TRACES_EXPORTER": "otlp"}) is None
    assert "pip install 'freehold[otel]'" in caplog.text
