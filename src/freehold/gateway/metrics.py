"""Prometheus metrics: vLLM's names with our prefix, so that dashboards made for it fit.

Names and buckets: https://docs.vllm.ai/en/latest/usage/metrics.html. A registry of its own, so that several gateways
can live in one process. Labels hold names of backends only: a client can't create series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from freehold.engine.request import EngineStats

PREFIX = "freehold:"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_TPOT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
_E2E = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)


class Metrics:
    """Everything the gateway counts.

    Args:
        stats: the engine's numbers now; None when there is no engine.
    """

    def __init__(self, stats: Callable[[], EngineStats] | None = None) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        by = ["backend"]

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(PREFIX + name, text, by, buckets=buckets, registry=self.registry)

        def counter(name: str, text: str, labels: list[str]) -> Counter:
            return Counter(PREFIX + name, text, labels, registry=self.registry)

        self.time_to_first_token = histogram("time_to_first_token_seconds", "Request to first content.", _TTFT)
        self.inter_token_latency = histogram("inter_token_latency_seconds", "Between pieces of content.", _TPOT)
        self.e2e_request_latency = histogram("e2e_request_latency_seconds", "Request to last event.", _E2E)
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.", by)
        self.generation_tokens = counter("generation_tokens", "Tokens generated.", by)
        self.request_success = counter("request_success", "Choices finished.", [*by, "finished_reason"])
        self.request_failure = counter("request_failure", "Requests that failed or were left.", [*by, "reason"])
        self.failovers = counter("failovers", "Requests that moved on from a backend.", [*by, "reason"])
        self.alerts = counter("alerts", "Backends quarantined and restored.", [*by, "event"])
        if stats is not None:
            self.registry.register(_EngineCollector(stats))

    def failover(self, backend: str, reason: str) -> None:
        """A request moved on."""
        self.failovers.labels(backend, reason).inc()

    def alert(self, backend: str, event: str) -> None:
        """A backend was quarantined, or is back."""
        self.alerts.labels(backend, event).inc()

    def text(self) -> bytes:
        """The exposition, as Prometheus reads it."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """Reads the engine's numbers when they are asked for."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        used = stats.kv_pages_used / stats.kv_pages_total if stats.kv_pages_total else 0.0
        yield GaugeMetricFamily(PREFIX + "num_requests_running", "Sequences in the engine's batch.", stats.running)
        yield GaugeMetricFamily(PREFIX + "num_requests_waiting", "Sequences in the engine's queue.", stats.waiting)
        yield GaugeMetricFamily(PREFIX + "kv_cache_usage_perc", "Share of the KV cache in use (1 = all).", used)
        yield CounterMetricFamily(PREFIX + "engine_restarts", "Times the engine was restarted.", value=stats.restarts)
        yield CounterMetricFamily(PREFIX + "num_preemptions", "Sequences preempted.", value=stats.preemptions)
