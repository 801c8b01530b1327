"""Engines and pool nodes one by one for Prometheus, from what ``/cluster`` says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from statepool.core.metrics import PREFIX

__all__ = ["ClusterCollector"]

_Entries = Sequence[Mapping[str, Any]]

_ENGINES = (
    ("usable", "gauge", "1 while the engine takes requests."),
    ("running", "gauge", "Sequences in its batch."),
    ("waiting", "gauge", "Sequences in its queue."),
    ("queued_tokens", "gauge", "Prompt tokens given to it that have no first token yet."),
    ("held_tokens", "gauge", "Tokens of the requests it decodes."),
    ("kv_blocks_free", "gauge", "KV blocks of it that can be taken now."),
    ("prefix_query_tokens", "counter", "Prompt tokens it looked up in its prefix index."),
    ("prefix_hit_tokens", "counter", "Prompt tokens it found there."),
    ("generated_tokens", "counter", "Tokens it generated."),
    ("replaced", "counter", "Times that it was given a new process."),
)
_NODES = (
    ("answers", "gauge", "1 while the pool node answers."),
    ("blocks", "gauge", "KV blocks in its memory."),
    ("slots", "gauge", "KV blocks that fit there."),
    ("held", "gauge", "KV blocks that an engine just reads or writes."),
    ("on_disk", "gauge", "KV blocks in its file."),
    ("hits", "counter", "Blocks asked for that it had."),
    ("misses", "counter", "Blocks asked for that it had not."),
    ("evicted", "counter", "Blocks given up for others."),
)


class ClusterCollector(Collector):
    """Turns the entries of ``/cluster`` into metric families; ``now`` is replaced before each export."""

    def __init__(self) -> None:
        self.now: Mapping[str, _Entries] = {"engines": (), "nodes": ()}

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """A family for each quantity, with a sample for each engine or node."""
        yield from _families("engine", _ENGINES, ("engine", "role"), ("number", "role"), self.now["engines"])
        yield from _families("pool_node", _NODES, ("node",), ("address",), self.now["nodes"])


def _families(
    of: str,
    quantities: Sequence[tuple[str, str, str]],
    labels: Sequence[str],
    named_by: Sequence[str],
    entries: _Entries,
) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
    for field, kind, text in quantities:
        family = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(
            f"{PREFIX}{of}_{field}", text, labels=labels
        )
        for entry in entries:
            family.add_metric([str(entry[name]) for name in named_by], float(entry[field]))
        yield family
