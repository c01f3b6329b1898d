"""Prometheus metrics: vLLM's names with our prefix, so that dashboards made for it fit.

Names and buckets: https://docs.vllm.ai/en/latest/usage/metrics.html. A registry of its own, so that several gateways
can live in one process. Labels hold names of backends only: a client can't create series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from freehold.engine.request import EngineStats
from freehold.gateway.breaker import State

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
        self.budget_refusals = counter(
            "budget_refusals", "Requests refused for a key's money, rates or rights.", ["reason"]
        )
        self.escalations = counter("escalations", "Drafts of the core that were not sure enough.", ["answered_by"])
        self.continuations = counter("continuations", "Answers that went on elsewhere after a break.", by)
        if stats is not None:
            self.registry.register(_EngineCollector(stats))

    def failover(self, backend: str, reason: str) -> None:
        """A request moved on."""
        self.failovers.labels(backend, reason).inc()

    def alert(self, backend: str, event: str) -> None:
        """A backend was quarantined, or is back."""
        self.alerts.labels(backend, event).inc()

    def watch(self, backends: Callable[[], Sequence[str]], state: Callable[[str], str]) -> None:
        """Shows the state of every backend's breaker from now on."""
        self.registry.register(_BreakerCollector(backends, state))

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
        told = "Steps by one thread alone, because other programs wanted the processors too."
        yield CounterMetricFamily(PREFIX + "engine_steps_alone", told, value=stats.steps_alone)


class _BreakerCollector(Collector):
    """One series for each backend and state, 1 for the one it is in: states can be counted and compared over time."""

    def __init__(self, backends: Callable[[], Sequence[str]], state: Callable[[str], str]) -> None:
        self._backends = backends
        self._state = state

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(PREFIX + "breaker_state", "State of each breaker.", labels=["backend", "state"])
        for name in self._backends():
            now = self._state(name)
            for state in get_args(State):
                family.add_metric([name, state], float(state == now))
        yield family
