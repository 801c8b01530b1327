"""Clusters by way of the KV pool: found by one engine, used by others, with the bits of clusters found here."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack

import numpy as np
import pytest
from tests.engine.conftest import checkpoint, make_engine  # noqa: F401
from tests.engine.test_determinism import bits

from statepool.engine.attention.wave import Segment, WaveConfig
from statepool.engine.request import Request, SamplingParams
from statepool.kv.pool import Node, NodeConfig

WAVE = "wave:shortest=0,update_segment=32,segment=64,tokens_per_cluster=4,local=8,retrieve=0.2,least=0,estimate=0.3"
PROMPT = tuple(range(40, 190))
"""Two layers; 142 of its 150 tokens are due: 64 + 64."""


def ask(prompt=PROMPT):
    return Request("a", prompt, SamplingParams(max_tokens=4, temperature=0.0, logprobs=0, ignore_eos=True))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32], ids=["bf16", "float32"])
@pytest.mark.parametrize("start", [0, 256])
def test_labels_make_the_same_segment(dtype, start):
    rng = np.random.default_rng(start)
    keys, values = rng.standard_normal((2, 3, 256, 32)).astype(np.float32)
    keys[1] = np.repeat(keys[1, ::64], 64, axis=0)  # four keys for sixteen clusters: most stay empty
    if dtype == np.uint16:
        keys, values = ((x.view(np.uint32) >> 16).astype(np.uint16) for x in (keys, values))
    config = WaveConfig(update_segment=256, estimator="diag2")
    first = Segment.build(keys, values, start, config)
    again = Segment.build(keys, values, start, config, first.labels())
    assert np.diff(first.offsets[1]).min() == 0
    for field in dataclasses.fields(Segment):
        one, other = getattr(first, field.name), getattr(again, field.name)
        assert one.tobytes() == other.tobytes() if isinstance(one, np.ndarray) else one == other, field.name
    # They are used: with others, others are the clusters.
    moved = Segment.build(keys, values, start, config, np.zeros_like(first.labels()))
    assert moved.offsets[0].tolist() == [first.pinned] + [256] * 16


@pytest.mark.parametrize(
    ("labels", "message"),
    [(np.zeros((3, 256), np.uint16), "tokens - pinned"), (np.full((3, 252), 16, np.uint16), "beyond the last")],
)
def test_labels_that_cannot_be(labels, message):
    keys = np.random.default_rng(0).standard_normal((3, 256, 32)).astype(np.float32)
    with pytest.raises(ValueError, match=message):
        Segment.build(keys, keys, 0, WaveConfig(update_segment=256), labels)


@pytest.fixture
def pooled(make_engine, tmp_path):  # noqa: F811
    """Makes engines over one pool node, which leaves with ``.leave()``."""
    address, made = f"unix:{tmp_path}/node", []
    size = make_engine()._layout.block_bytes
    node = Node(NodeConfig(listen=address, block_bytes=size, memory_bytes=8 << 20))
    node.start()
    here = ExitStack()
    here.callback(node.close)

    def build(attention=WAVE, **settings):
        engine = make_engine(attention=attention, pool=address, **settings)
        made.append(engine)
        clusters = engine._loop.shared._clusters
        for pool in (clusters._inward, clusters._outward, engine._loop.shared._inward, engine._loop.shared._outward):
            for lane in (lane for link in pool.links for lane in link.lanes):
                lane._timeout = 60.0  # a loaded machine may take its time
        return engine, clusters

    build.leave = here.close
    yield build
    for engine in made:
        engine._loop.shared.close()
    here.close()


def count_searches(monkeypatch):
    """A list that gets an item whenever clusters are looked for."""
    searched, build = [], Segment.build.__func__

    def counted(cls, keys, values, start, config, labels=None):
        if labels is None:
            searched.append(start)
        return build(cls, keys, values, start, config, labels)

    monkeypatch.setattr(Segment, "build", classmethod(counted))
    return searched


@pytest.mark.parametrize("budget", [None, 3 << 20], ids=["memory", "file"])
def test_a_second_engine_looks_for_no_cluster(pooled, make_engine, monkeypatch, budget):  # noqa: F811
    alone = bits(make_engine(attention=WAVE).generate([ask()])["a"])
    first, _ = pooled()
    assert bits(first.generate([ask()])["a"]) == alone
    first._loop.shared.drain()
    searched = count_searches(monkeypatch)
    second, clusters = pooled(kv_budget=budget)
    assert bits(second.generate([ask()])["a"]) == alone
    assert (clusters.found, searched) == (2, [])
    longer = bits(make_engine(attention=WAVE).generate([ask(PROMPT + PROMPT)])["a"])
    searched.clear()
    assert bits(second.generate([ask(PROMPT + PROMPT)])["a"]) == longer
    # 150 + 150 tokens have segments to 288: the first two are there, two of 64 and one of 32 are new, in two layers.
    assert sorted(searched) == [128, 128, 192, 192, 256, 256]


def test_other_settings_are_other_clusters(pooled):
    first, _ = pooled()
    first.generate([ask()])
    first._loop.shared.drain()
    for change in (",tokens_per_cluster=8", ",iterations=3"):
        other, clusters = pooled(WAVE + change)
        other.generate([ask()])
        assert clusters.found == 0


def test_layers_that_stay_full_have_none(pooled, make_engine):  # noqa: F811
    alone = bits(make_engine(attention=WAVE + ",last=1").generate([ask()])["a"])
    for found in (0, 2):
        engine, clusters = pooled(WAVE + ",last=1")
        assert bits(engine.generate([ask()])["a"]) == alone
        assert clusters.found == found
        engine._loop.shared.drain()


def test_labels_that_are_wrong_are_found_anew(pooled, make_engine):  # noqa: F811
    alone = bits(make_engine(attention=WAVE).generate([ask()])["a"])
    first, clusters = pooled()
    saved = []
    save = clusters._outward.save
    clusters._outward.save = lambda keys, rows: saved.append((keys, rows)) or 0
    assert bits(first.generate([ask()])["a"]) == alone
    clusters.drain()
    assert len(saved) == 2
    for keys, rows in saved:  # right checksums, impossible labels
        save(keys, [np.full_like(row, 255) for row in rows])
    second, clusters = pooled()
    assert bits(second.generate([ask()])["a"]) == alone
    assert clusters.found == 2  # both came, and were not used


def test_a_node_that_is_gone_costs_nothing_but_time(pooled, make_engine):  # noqa: F811
    alone = bits(make_engine(attention=WAVE).generate([ask()])["a"])
    engine, clusters = pooled()
    pooled.leave()
    assert bits(engine.generate([ask()])["a"]) == alone
    assert clusters.found == 0
