"""The server's metrics: what is measured, and its export for Prometheus from a registry of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from statepool.core.metrics import DURATION_BUCKETS, LATENCY_BUCKETS, PREFIX, TOKEN_BUCKETS, Metric
from statepool.engine.config import EngineStats
from statepool.serve.cluster_metrics import ClusterCollector

TTFT = Metric("time_to_first_token_seconds", "histogram", "From arrival to the first output.", buckets=LATENCY_BUCKETS, alias="vllm:time_to_first_token_seconds")  # fmt: skip  # noqa: E501
ITL = Metric("inter_token_latency_seconds", "histogram", "Between two outputs of one sequence.", buckets=LATENCY_BUCKETS, alias="vllm:inter_token_latency_seconds")  # fmt: skip  # noqa: E501
E2E = Metric("e2e_request_latency_seconds", "histogram", "From arrival to the last output.", buckets=DURATION_BUCKETS, alias="vllm:e2e_request_latency_seconds")  # fmt: skip  # noqa: E501
QUEUE = Metric("request_queue_time_seconds", "histogram", "From submission to the first step.", buckets=DURATION_BUCKETS, alias="vllm:request_queue_time_seconds")  # fmt: skip  # noqa: E501
PROMPT = Metric("request_prompt_tokens", "histogram", "Prompt tokens of a request.", buckets=TOKEN_BUCKETS, alias="vllm:request_prompt_tokens")  # fmt: skip  # noqa: E501
GENERATED = Metric("request_generation_tokens", "histogram", "Generated tokens of a request.", buckets=TOKEN_BUCKETS, alias="vllm:request_generation_tokens")  # fmt: skip  # noqa: E501
SUCCESS = Metric("request_success", "counter", "Finished requests by reason.", ("finished_reason",), alias="vllm:request_success")  # fmt: skip  # noqa: E501
REJECTED = Metric("requests_rejected", "counter", "Requests refused with 429 or 503.", ("status",))
CANCELLED = Metric("requests_cancelled", "counter", "Requests whose client left.")
HTTP = Metric("http_requests", "counter", "Answered HTTP requests.", ("route", "status"))

_COUNTERS = (
    ("prompt_tokens", "Prompt tokens of admitted requests.", "vllm:prompt_tokens"),
    ("generated_tokens", "Generated tokens.", "vllm:generation_tokens"),
    ("prefix_query_tokens", "Prompt tokens looked up in the prefix index.", "vllm:prefix_cache_queries"),
    ("prefix_hit_tokens", "Prompt tokens found there.", "vllm:prefix_cache_hits"),
    ("preemptions", "Sequences sent back to the queue for want of KV blocks.", "vllm:num_preemptions"),
    ("recomputed_tokens", "Tokens computed more than once: waste.", None),
    ("forward_tokens", "Tokens fed to the model.", None),
    ("steps", "Steps of the engine.", None),
    ("draft_tokens", "Drafted tokens.", "vllm:spec_decode_num_draft_tokens"),
    ("accepted_tokens", "Drafted tokens that were right.", "vllm:spec_decode_num_accepted_tokens"),
    ("aborted", "Requests taken out of the batch.", None),
    ("pool_hit_tokens", "Prompt tokens whose KV came from the shared pool.", None),
    ("pool_loaded_blocks", "KV blocks taken over from the shared pool.", None),
    ("pool_saved_blocks", "KV blocks given to it.", None),
    ("pool_corrupt_blocks", "KV blocks of it that failed their checksum; never used.", None),
    ("pool_failures", "Questions that a node of it did not answer.", None),
    ("attention_workers_lost", "Times that KV was computed again because an attention worker was gone.", None),
)
_GAUGES = (
    ("running", "requests_running", "Sequences in the batch.", "vllm:num_requests_running"),
    ("waiting", "requests_waiting", "Sequences in the queue.", "vllm:num_requests_waiting"),
    ("kv_blocks_total", "kv_blocks_total", "KV blocks of the pool.", None),
    ("kv_blocks_free", "kv_blocks_free", "KV blocks that can be taken now.", None),
    ("kv_blocks_cached", "kv_blocks_cached", "KV blocks the prefix index knows.", None),
    ("sessions", "sessions", "Named sessions.", None),
    ("session_bytes_parked", "session_parked_bytes", "KV bytes of sessions outside the pool.", None),
    ("paused", "paused", "1 while the engine is paused.", None),
)


class ServerMetrics:
    """Histograms of requests, and the engine's counters as of its last pulse."""

    def __init__(self, vllm_names: bool = False) -> None:
        """``vllm_names`` exports each quantity a second time under the name vLLM gives it."""
        self.registry = CollectorRegistry()
        self._vllm_names = vllm_names
        self._engine = _EngineCollector(vllm_names)
        self._cluster = ClusterCollector()
        self.registry.register(self._engine)
        self.registry.register(self._cluster)
        self._histograms = {m.name: self._histogram(m) for m in (TTFT, ITL, E2E, QUEUE, PROMPT, GENERATED)}
        self._counters = {m.name: self._counter(m) for m in (SUCCESS, REJECTED, CANCELLED, HTTP)}

    def observe(self, metric: Metric, value: float) -> None:
        """Put ``value`` into a histogram."""
        for histogram in self._histograms[metric.name]:
            histogram.observe(value)

    def count(self, metric: Metric, *labels: str) -> None:
        """Add one to a counter."""
        for counter in self._counters[metric.name]:
            (counter.labels(*labels) if labels else counter).inc()

    def export(self, stats: EngineStats, standing: Mapping[str, Sequence[Mapping[str, object]]] | None = None) -> bytes:
        """Everything in Prometheus' text format; ``standing`` is what ``/cluster`` says, if it is known."""
        self._engine.stats = stats
        if standing is not None:
            self._cluster.now = standing
        return bytes(generate_latest(self.registry))

    def _names(self, metric: Metric) -> list[str]:
        return [PREFIX + metric.name, *([metric.alias] if self._vllm_names and metric.alias else [])]

    def _histogram(self, metric: Metric) -> list[Histogram]:
        return [
            Histogram(name, metric.help, buckets=metric.buckets, registry=self.registry) for name in self._names(metric)
        ]

    def _counter(self, metric: Metric) -> list[PrometheusCounter]:
        return [
            PrometheusCounter(name, metric.help, metric.labels, registry=self.registry) for name in self._names(metric)
        ]


class _EngineCollector(Collector):
    """Turns the latest EngineStats into metric families when they are asked for."""

    def __init__(self, vllm_names: bool) -> None:
        self.stats = EngineStats()
        self._vllm_names = vllm_names

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        for field, text, alias in _COUNTERS:
            for name in self._names(field, alias):
                yield CounterMetricFamily(name, text, value=getattr(self.stats, field))
        for field, own, text, alias in _GAUGES:
            for name in self._names(own, alias):
                yield GaugeMetricFamily(name, text, value=float(getattr(self.stats, field)))
        used = self.stats.kv_blocks_total - self.stats.kv_blocks_free
        share = used / self.stats.kv_blocks_total if self.stats.kv_blocks_total else 0.0
        for name in self._names("kv_cache_usage_perc", "vllm:kv_cache_usage_perc"):
            yield GaugeMetricFamily(name, "Share of KV blocks in use, 0 to 1.", value=share)

    def _names(self, own: str, alias: str | None) -> list[str]:
        return [PREFIX + own, *([alias] if alias and self._vllm_names else [])]
