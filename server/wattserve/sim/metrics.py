"""The virtual engine under /metrics, by vLLM's names, so that one dashboard serves both."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from wattserve.sim.engine import Engine
from wattserve.sim.openai.stream import Answer
from wattserve.sim.scheduler import Sequence

_LATE_BUCKETS = (0.0001, 0.0003, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)
_FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
)  # fmt: skip
_PER_TOKEN_BUCKETS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_REQUEST_BUCKETS = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 480.0)


class EngineMetrics(Collector):
    """Counters are the engine's own, read when Prometheus asks; histograms are fed request by request."""

    def __init__(self, model: str, registry: CollectorRegistry) -> None:
        self._labels = {"model_name": model, "engine": "0"}
        self._engine: Engine | None = None
        self.prompt_tokens = 0
        names = list(self._labels)
        self._late = Histogram(
            "wattserve_simulation_late_seconds",
            "Time from a step's planned end until its tokens were handed to the network.",
            buckets=_LATE_BUCKETS,
            registry=registry,
        )
        self._first_token = Histogram(
            "vllm:time_to_first_token_seconds",
            "Time to first token.",
            names,
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=registry,
        ).labels(**self._labels)
        self._per_token = Histogram(
            "vllm:request_time_per_output_token_seconds",
            "Mean time per output token after the first, of a request.",
            names,
            buckets=_PER_TOKEN_BUCKETS,
            registry=registry,
        ).labels(**self._labels)
        self._whole = Histogram(
            "vllm:e2e_request_latency_seconds",
            "Time from arrival to last token.",
            names,
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        ).labels(**self._labels)
        self._success = Counter(
            "vllm:request_success",
            "Requests that ended, by the reason.",
            [*names, "finished_reason"],
            registry=registry,
        )
        registry.register(self)

    def watch(self, engine: Engine) -> None:
        self._engine = engine

    def late(self, seconds: float) -> None:
        self._late.observe(max(0.0, seconds))

    def first_token(self, seq: Sequence) -> None:
        seq.first_token_ns = time.monotonic_ns()
        self.prompt_tokens += seq.prompt_tokens
        self._first_token.observe((seq.first_token_ns - seq.arrival_ns) * 1e-9)

    def ended(self, answer: Answer) -> None:
        now = time.monotonic_ns()
        self._whole.observe((now - answer.arrival_ns) * 1e-9)
        for choice in answer.choices:
            seq = choice.sequence
            self._success.labels(*self._labels.values(), choice.finish_reason).inc()
            if seq.generated > 1:
                self._per_token.observe((now - seq.first_token_ns) * 1e-9 / (seq.generated - 1))

    def computed(self, arrival_ns: int, sequences: list[Sequence]) -> None:
        """A request that generates nothing ended."""
        self._whole.observe((time.monotonic_ns() - arrival_ns) * 1e-9)
        self.prompt_tokens += sum(seq.prompt_tokens for seq in sequences)
        self._success.labels(*self._labels.values(), "stop").inc(len(sequences))

    def given_up(self, sequences: int) -> None:
        """So many sequences of a request that generates nothing were not computed to their end."""
        self._success.labels(*self._labels.values(), "abort").inc(sequences)

    def aborted(self, answer: Answer) -> None:
        unfinished = sum(1 for choice in answer.choices if choice.sequence.generated < choice.output_tokens)
        self._success.labels(*self._labels.values(), "abort").inc(unfinished)

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        engine = self._engine
        if engine is None:
            return
        scheduler = engine.scheduler
        names, labels = list(self._labels), list(self._labels.values())
        for name, text, gauge in (
            ("vllm:num_requests_running", "Sequences in the running batch.", engine.running),
            ("vllm:num_requests_waiting", "Sequences waiting to be admitted.", engine.waiting),
            (
                "vllm:kv_cache_usage_perc",
                "Part of the KV cache in use, 1 is all.",
                scheduler.cache.used_fraction,
            ),
        ):
            family = GaugeMetricFamily(name, text, labels=names)
            family.add_metric(labels, gauge)
            yield family
        for name, text, count in (
            (
                "vllm:prompt_tokens",
                "Prompt tokens of requests that got their first token.",
                self.prompt_tokens,
            ),
            ("vllm:generation_tokens", "Tokens sampled.", engine.tokens_delivered),
            ("vllm:num_preemptions", "Times a running sequence lost its blocks.", scheduler.preemptions),
            ("vllm:prefix_cache_queries", "Tokens looked up in the prefix cache.", scheduler.prefix_queries),
            ("vllm:prefix_cache_hits", "Tokens found in the prefix cache.", scheduler.prefix_hits),
            ("wattserve_simulation_steps", "Engine steps of the simulated GPU.", engine.steps_run),
        ):
            labelled = name.startswith("vllm:")
            counter = CounterMetricFamily(name, text, labels=names if labelled else [])
            counter.add_metric(labels if labelled else [], count)
            yield counter
