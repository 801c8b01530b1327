"""A model over several processes: the bits of one, whatever is under way when something else happens."""

import os
import signal

import numpy as np
import pytest

from statepool.core.errors import InvalidConfig, Unavailable
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams
from statepool.engine.stages import shares
from statepool.kv.pool import Node, NodeConfig

SMALL = {"max_batched_tokens": 32, "max_seqs": 4}


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    from tests.small_models import write_model

    return write_model(tmp_path_factory.mktemp("models") / "deep", num_hidden_layers=5)


def build(model, **settings):
    return Engine(EngineConfig(**{"model": str(model), "threads": 1, "kv_bytes": 4 << 20, **SMALL, **settings}))


def ask(name, tokens, **params):
    return Request(
        name, tuple(tokens), SamplingParams(**{"ignore_eos": True, "logprobs": 3, "temperature": 0, **params})
    )


def prompt(length, seed=0):
    return np.random.default_rng(seed).integers(10, 250, length).tolist()


def answers(engine, requests):
    return {
        name: [(o.tokens, [x.logprob for x in o.logprobs or []]) for o in outputs]
        for name, outputs in engine.generate(requests).items()
    }


def crowd():
    return [ask(f"r{i}", prompt(5 + 37 * i, i), max_tokens=4 + i, temperature=i % 2, seed=i) for i in range(5)]


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_bits_are_those_of_one_process(deep, stages):
    alone, staged = build(deep), build(deep, stages=stages)
    assert answers(staged, crowd()) == answers(alone, crowd())
    everything = list(range(len(alone.runner.storage)))
    assert np.array_equal(alone.runner.read_blocks(everything), staged.runner.read_blocks(everything))


def test_the_middle_of_a_prompt_is_not_waited_for(deep):
    engine = build(deep, stages=2)
    engine.submit(ask("long", prompt(300), max_tokens=1))
    os.kill(engine.runner._processes[0].pid, signal.SIGSTOP)
    try:
        for _ in range(3):  # would stand still here if it waited
            engine.step()
        assert engine.runner.busy
    finally:
        os.kill(engine.runner._processes[0].pid, signal.SIGCONT)
    outputs = [output for _ in range(7) for output in engine.step()]
    assert outputs[-1].finish_reason == "length"
    assert not engine.runner.busy


def test_the_pool_gets_blocks_only_when_every_stage_has_written_them(deep, tmp_path):
    """Also those of a request that is dropped in the middle, whose blocks another one takes at once."""
    layout = build(deep)._layout
    node = Node(NodeConfig(listen=f"unix:{tmp_path}/node", block_bytes=layout.block_bytes, memory_bytes=4 << 20))
    node.start()
    pool, room = f"unix:{tmp_path}/node", 20 * layout.block_bytes  # so little that blocks are used again
    engine, fresh = build(deep, stages=2, pool=pool, kv_bytes=room), build(deep, pool=pool)
    try:
        process = engine.runner._processes[0].pid
        engine.submit(ask("dropped", prompt(300), max_tokens=1))
        os.kill(process, signal.SIGSTOP)
        engine.step()
        engine.step()
        os.kill(process, signal.SIGCONT)
        engine.abort("dropped")
        answers(engine, [ask("other", prompt(280, 9), max_tokens=2)])
        asked = [ask("again", prompt(300), max_tokens=3), ask("o", prompt(280, 9), max_tokens=2)]
        assert answers(fresh, asked) == answers(build(deep), asked)
        assert fresh.stats().pool_hit_tokens == 64 + 272
    finally:
        for each in (engine, fresh):
            each._loop.shared.close()
        node.close()


def test_new_weights_reach_every_stage(deep):
    alone, staged = build(deep), build(deep, stages=3)
    name = "model.layers.4.mlp.down_proj.weight"
    changed = {name: np.zeros(alone._checkpoint.shape(name), np.float32)}
    before = answers(staged, crowd())
    for engine in (alone, staged):
        engine.update_weights(changed.items(), version="1")
    after = answers(staged, crowd())
    assert after == answers(alone, crowd())
    assert after != before


def test_a_lost_stage_ends_the_engine(deep):
    engine = build(deep, stages=2)
    engine.runner._processes[0].kill()
    with pytest.raises(Unavailable, match="a stage of the model does not answer"):
        answers(engine, [ask("r", prompt(20), max_tokens=2)])


def test_what_does_not_go_together_is_refused(deep):
    with pytest.raises(InvalidConfig, match="from 1 to the model's 5 layers, got 6"):
        build(deep, stages=6)
    others = ({"attention": "moba"}, {"kv_budget": 1 << 20}, {"speculate": "wave"}, {"attention_workers": "2"})
    for other in others:
        with pytest.raises(InvalidConfig, match="stages needs attention 'full'"):
            build(deep, stages=2, **other)


def test_shares_are_even_and_whole():
    for layers in range(1, 40):
        for stages in range(1, layers + 1):
            found = shares(layers, stages)
            assert [i for share in found for i in share] == list(range(layers))
            assert max(map(len, found)) - min(map(len, found)) <= 1
