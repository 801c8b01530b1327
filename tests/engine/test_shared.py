"""Blocks that come from and go to the pool beside the steps: nobody else waits, nothing leaks, no bit changes."""

import random
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from tests.relays import relayed

from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams
from statepool.kv.pool import Node, NodeConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tests.small_models import write_model

    return str(write_model(tmp_path_factory.mktemp("models") / "small", num_hidden_layers=2))


@contextmanager
def gate(address):
    """A relay that passes bytes while its event is set."""
    opened = threading.Event()
    opened.set()

    def late(data):
        opened.wait()
        return data

    with relayed(address, lambda: (late, late)) as relay:
        try:
            yield relay, opened
        finally:
            opened.set()


@pytest.fixture
def engines(model, tmp_path):
    """Makes engines over one pool node; ``pool=None`` for one alone."""
    made = []
    unix = f"unix:{tmp_path}/node"

    def build(pool=unix, **settings):
        shape = {"threads": 1, "kv_bytes": 4 << 20, "max_batched_tokens": 32, "max_seqs": 4}
        engine = Engine(EngineConfig(model, pool=pool, **{**shape, **settings}))
        if pool is not None:
            made.append(engine)
            for side in (engine._loop.shared._inward, engine._loop.shared._outward):
                for lane in (lane for link in side.links for lane in link.lanes):
                    lane._timeout = 60.0  # the gate may stay shut for as long as a loaded machine needs
        return engine

    size = build(pool=None)._layout.block_bytes
    port = socket.create_server(("127.0.0.1", 0))
    build.tcp = f"tcp://127.0.0.1:{port.getsockname()[1]}"
    port.close()
    nodes = [Node(NodeConfig(listen=at, block_bytes=size, memory_bytes=4 << 20)) for at in (unix, build.tcp)]
    for node in nodes:
        node.start()
    yield build
    for each in (*(engine._loop.shared for engine in made), *nodes):
        each.close()


def ask(name, length, seed=0, **params):
    tokens = tuple(np.random.default_rng(seed).integers(10, 250, length).tolist())
    return Request(name, tokens, SamplingParams(**{"ignore_eos": True, "temperature": 0, **params}))


def answers(engine, requests):
    return {name: [t for o in outputs for t in o.tokens] for name, outputs in engine.generate(requests).items()}


def run_until(engine, done, got=None):
    """Step until ``done``; the tokens of everybody, by request."""
    got, end = {} if got is None else got, time.monotonic() + 60
    while not done(got):
        assert time.monotonic() < end
        for output in engine.step():
            got.setdefault(output.id, []).extend(output.tokens)
    return got


def test_a_prefix_that_is_slow_to_come_holds_up_nobody_else(engines):
    expected = answers(engines(pool=None), [ask("far", 200, 1, max_tokens=3)])
    answers(engines(pool=engines.tcp), [ask("far", 200, 1, max_tokens=1)])
    with gate(engines.tcp) as (address, opened):
        engine = engines(pool=address)
        engine.submit(ask("here", 20, 2, max_tokens=60))
        got = run_until(engine, lambda got: "here" in got)
        opened.clear()
        engine.submit(ask("far", 200, 1, max_tokens=3))
        run_until(engine, lambda got: len(got["here"]) >= 40, got)
        assert "far" not in got and engine.stats().waiting == 1
        opened.set()
        run_until(engine, lambda _: not engine.has_work, got)
    assert got["far"] == expected["far"]
    assert engine.stats().pool_hit_tokens == 192


def test_a_chunk_leaves_while_the_next_is_computed(engines):
    with gate(engines.tcp) as (address, opened):
        engine = engines(pool=address)
        answers(engine, [ask("first", 20, 9, max_tokens=1)])  # the connections are there
        engine.submit(ask("long", 160, 1, max_tokens=8))
        engine.step()  # the pool has said that it has nothing
        opened.clear()
        for _ in range(4):  # of 32 tokens each
            engine.step()
        assert engine._loop.running["long"].computed == 160
        assert engine.stats().pool_saved_blocks <= 1 + 2
        opened.set()
        run_until(engine, lambda _: not engine.has_work)
    assert engine.stats().pool_saved_blocks == 1 + 10
    assert engine.pool.free == engine.pool.total


def test_a_request_that_is_dropped_while_its_prefix_comes_leaves_it_to_the_next(engines):
    answers(engines(pool=engines.tcp), [ask("far", 200, 1, max_tokens=1)])
    with gate(engines.tcp) as (address, opened):
        engine = engines(pool=address)
        engine.submit(ask("here", 20, 2, max_tokens=80))
        got = run_until(engine, lambda got: "here" in got)
        opened.clear()
        engine.submit(ask("far", 200, 1, max_tokens=1))
        run_until(engine, lambda got: len(got["here"]) >= 5, got)
        assert engine.abort("far")
        opened.set()
        # An engine without work does not look whether they have come.
        run_until(engine, lambda _: engine.stats().pool_loaded_blocks == 12 or not engine.has_work, got)
        engine.submit(ask("far", 200, 1, max_tokens=1))
        run_until(engine, lambda _: not engine.has_work, got)
    assert engine.stats().prefix_hit_tokens == 192
    engine.pool.check()
    assert engine.pool.free == engine.pool.total


def test_a_moved_request_goes_on_where_its_blocks_come_late(engines):
    whole = answers(engines(pool=None), [ask("moves", 150, 3, max_tokens=12)])
    first = engines(pool=engines.tcp)
    first.submit(ask("moves", 150, 3, max_tokens=12))
    got = run_until(first, lambda got: "moves" in got)
    state = first.export_state("moves", pooled=True)
    with gate(engines.tcp) as (address, opened):
        second = engines(pool=address)
        second.submit(ask("here", 20, 2, max_tokens=60))
        run_until(second, lambda other: "here" in other)
        opened.clear()
        second.import_state(state)
        other = run_until(second, lambda other: len(other.get("here", ())) >= 10)
        assert "moves" not in other
        opened.set()
        run_until(second, lambda _: not second.has_work, got)
    assert got["moves"] == whole["moves"]
    assert second.stats().recomputed_tokens == 0
    assert second.stats().forward_tokens < 20 + 60 + 12 + 16


@pytest.mark.parametrize("seed", range(4))
def test_engines_that_share_everything_answer_like_one_alone(engines, seed):
    """Moves, drops and little room at random; every book balances at the end."""
    draw = random.Random(seed)
    plain = engines(pool=None)
    both = [engines(kv_bytes=24 * plain._layout.block_bytes) for _ in range(2)]
    requests = [
        ask(f"r{i}", draw.randrange(5, 250), draw.randrange(3), max_tokens=draw.randrange(1, 30)) for i in range(12)
    ]
    expected, got, dropped = answers(plain, requests), {request.id: [] for request in requests}, set()
    todo = list(requests)
    while todo or any(engine.has_work for engine in both):
        at = draw.randrange(2)
        event = draw.random()
        if todo and event < 0.3:
            both[at].submit(todo.pop())
        busy = [name for name in got if both[at]._loop.find(name) is not None]
        if busy and event > 0.9:
            both[1 - at].import_state(both[at].export_state(draw.choice(busy), pooled=draw.random() < 0.7))
        elif busy and event > 0.88:
            dropped.add(name := draw.choice(busy))
            both[at].abort(name)
        for output in both[at].step():
            got[output.id] += output.tokens
    assert {name: tokens for name, tokens in got.items() if name not in dropped} == {
        name: tokens for name, tokens in expected.items() if name not in dropped
    }
    for engine in both:
        engine._loop.shared.drain()
        while engine._loop.shared.wait():
            engine._loop._book_arrivals()
        engine.pool.check()
        assert engine.pool.free == engine.pool.total
