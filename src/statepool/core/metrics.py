"""What can be measured, named once: plain descriptions that any exporter can turn into its own objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "statepool_"
"""Every metric name starts with this."""

LATENCY_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0)
"""Upper bounds, in seconds, for waits within one request (first token, next token)."""

DURATION_BUCKETS = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 600.0)
"""Upper bounds, in seconds, for whole requests."""

TOKEN_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000)
"""Upper bounds for token counts of a request."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured quantity. Counters are exported with the suffix ``_total``.

    Args:
        name: without prefix; the unit is its last word (``_seconds``, ``_tokens``, ``_bytes``).
        kind: how values combine.
        help: one sentence for the reader of a graph.
        labels: names of the labels, if any.
        buckets: upper bounds, for histograms only.
        alias: the name the same quantity has in vLLM's export, for dashboards that know only that one.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    alias: str | None = None
