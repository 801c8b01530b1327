"""Attention workers that are killed, stopped or replaced; model workers that come again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.lamina.asking import answers, requests

from statepool.core.errors import KVLost


def slow(*values):
    """One more case of the same, for the long run: starting processes is what takes time here."""
    return pytest.param(*values, marks=pytest.mark.slow)


def processes(engine):
    """The attention workers an engine has started."""
    return engine.runner._offload.restart.__self__.processes


@pytest.mark.parametrize(
    ("split", "kills", "batches"),
    [("heads", (7,), 2), slow("request", (1,), 2), slow("sequence", (2, 9), 2), slow("heads", (3, 8), 3)],
)
def test_a_killed_worker_costs_time_and_no_token(engines, split, kills, batches):
    asked = list(requests(4, seed=11, lengths=(20, 60), answer=16))
    expected = answers(engines(), asked)
    apart = engines(attention_workers="2", attention_split=split, attention_batches=batches)
    for request in asked:
        apart.submit(request)
    outputs = []
    for step in range(200):
        if step in kills:
            victim = processes(apart)[step % 2]
            victim.kill()
            victim.wait()
        outputs += apart.step()
        if not apart.has_work:
            break
    found = {}
    for output in outputs:
        found.setdefault(output.id, []).extend(zip(output.tokens, output.logprobs or [], strict=False))
    assert found == expected
    assert apart.stats().attention_workers_lost == len(kills)
    apart.pool.check()
    assert apart.pool.free == apart.pool.total


def test_a_worker_that_stands_still_counts_as_lost(engines):
    (request,) = requests(1, seed=12, lengths=(30, 30), answer=10)
    expected = answers(engines(), [request])
    apart = engines(attention_workers="1", attention_patience=0.5)
    apart.submit(request)
    outputs = apart.step() + apart.step()
    stopped = processes(apart)[0]
    os.kill(stopped.pid, signal.SIGSTOP)
    outputs += apart.step()  # the deadline passes; the worker is given up
    while apart.has_work:
        outputs += apart.step()
    assert [pair for o in outputs for pair in zip(o.tokens, o.logprobs or [], strict=False)] == expected[request.id]


def test_a_new_model_worker_finds_the_blocks_of_the_old_one(engines, nodes):
    """Stateless model workers: only what was in the unfinished block is computed again."""
    addresses = ",".join(nodes(2))
    (request,) = requests(1, seed=13, lengths=(300, 300), answer=40)
    expected = answers(engines(), [request])[request.id]
    first = engines(attention_workers=addresses)
    first.submit(request)
    outputs = [output for _ in range(20) for output in first.step()]
    said = [token for output in outputs for token in output.tokens]
    second = engines(attention_workers=addresses)  # takes over from the first, which never says goodbye
    second.take_over(request, request.params.seed or 0, said)
    rest = []
    while second.has_work:
        rest += second.step()
    assert said + [token for output in rest for token in output.tokens] == [token for token, _ in expected]
    # 20 tokens to make, and to compute again at most a block begun and one the workers were not told of.
    assert second.stats().forward_tokens <= 20 + 2 * 16
    with pytest.raises(KVLost):
        first.runner.forward(_batch())


def _batch():
    from statepool.engine.batch import Batch

    return Batch.build([([1], 0, [0])])


def test_blocks_of_other_weights_are_not_found(engines, nodes, tmp_path):
    from tests.small_models import write_model

    addresses = ",".join(nodes(2))
    (request,) = requests(1, seed=14, lengths=(64, 64))
    answers(engines(attention_workers=addresses), [request])
    other = write_model(tmp_path / "other", seed=1, max_position_embeddings=4096)
    second = engines(other, attention_workers=addresses)
    assert answers(second, [request]) == answers(engines(other), [request])
    assert second.stats().prefix_hit_tokens == 0


@pytest.mark.slow
def test_local_workers_end_with_their_engine(tmp_path, checkpoint):
    program = (
        "import sys, os, signal\n"
        "from statepool.engine.config import EngineConfig\n"
        "from statepool.engine.engine import Engine\n"
        f"engine = Engine(EngineConfig(model={str(checkpoint)!r}, attention_workers='1', kv_bytes=1 << 20))\n"
        "print(engine.runner._offload.restart.__self__.processes[0].pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    worker = Path(f"/proc/{int(done.stdout)}")
    end = time.monotonic() + 10
    while worker.exists() and "Z" not in (worker / "stat").read_text().split()[2]:
        assert time.monotonic() < end, "the worker outlived its engine"
        time.sleep(0.1)


def test_a_loss_behind_a_step_keeps_what_the_step_said(engines, nodes, checkpoint, monkeypatch):
    """The shared pool asks for full blocks after the tokens were chosen: these must reach the client, once."""
    from statepool.engine.config import EngineConfig
    from statepool.engine.engine import kv_layout
    from statepool.kv.pool import Node, NodeConfig

    asked = list(requests(3, seed=15, lengths=(30, 60), answer=40))
    expected = answers(engines(), asked)
    settings = EngineConfig(model=str(checkpoint))
    pool = Node(NodeConfig(f"unix:{nodes.folder}/pool", kv_layout(settings).block_bytes, 1 << 20))
    pool.start()
    apart = engines(attention_workers=",".join(nodes(2)), pool=f"unix:{nodes.folder}/pool")
    try:
        lost, read = [], apart.runner.read_blocks

        def failing(blocks):
            if blocks and len(lost) < 3:
                lost.append(blocks)
                raise KVLost("gone")
            return read(blocks)

        monkeypatch.setattr(apart.runner, "read_blocks", failing)
        assert answers(apart, asked) == expected
        assert apart.stats().attention_workers_lost == len(lost) == 3
        assert apart.stats().pool_saved_blocks > 0
    finally:
        apart._loop.shared.close()
        pool.close()
