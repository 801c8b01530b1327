"""Engines on machines of their own: KV and texts travel in guarded messages, and the tokens are the same."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from statepool.cluster import LocalLauncher, blocking
from statepool.engine.config import EngineConfig
from statepool.rollout import rollout
from statepool.rollout.fleet import Fleet

CONFIG = EngineConfig(kv_bytes=48 * 16384, max_seqs=8, threads=1)


class Apart(LocalLauncher):
    """Processes of this machine that are treated as if they were on others."""

    remote = True

    def endpoint(self, path):
        assert not path.exists()
        return "tcp://127.0.0.1:*"


@pytest.fixture(scope="module")
def long(groups):
    return [replace(g, params=replace(g.params, max_tokens=120, ignore_eos=True)) for g in groups]


@pytest.fixture(scope="module")
def wanted(engine, long):
    return [(r.tokens, r.logprobs, r.text) for r in rollout(engine(128), long).responses]


def told(done):
    return [(r.tokens, r.logprobs, r.text) for r in done.responses]


def test_machines_without_common_memory_give_the_same_tokens_and_compute_none_twice(long, wanted, monkeypatch):
    monkeypatch.setattr(blocking, "launcher", lambda ray: Apart())
    killed = []
    with Fleet(CONFIG, 2, drafts="group", report_every=4) as fleet:
        assert fleet.draft_server.address.startswith("tcp://")
        done = rollout(fleet, long, policy="divided_rr", chunk=16)
        assert told(done) == wanted
        assert done.refilled == done.preemptions == 0
        assert any(len({chunk.instance for chunk in r.chunks}) > 1 for r in done.responses)

        def kill(now):
            if not killed and now.tokens > 200:
                killed.extend([fleet.draft_server.pid, fleet.pids()[1]])
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

        again = rollout(fleet, long, policy="divided_rr", chunk=16, on_progress=kill)
        assert killed and told(again) == wanted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_places_engines_and_the_draft_server(long, wanted):
    pytest.importorskip("ray")
    with Fleet(CONFIG, 2, ray="local", drafts="group") as fleet:
        assert told(rollout(fleet, long, policy="divided_rr", chunk=16)) == wanted
