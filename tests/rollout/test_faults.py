"""An engine, the draft server and the controller, each killed in the middle: the same responses, none lost or twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from tests.small_models import write_model

from statepool.cluster import LocalLauncher
from statepool.core.errors import InvalidCheckpoint, InvalidRequest, Unavailable
from statepool.engine.config import EngineConfig
from statepool.rollout import LocalHosts, rollout
from statepool.rollout.fleet import Fleet
from statepool.rollout.instance import FolderStates, MemoryStates
from statepool.rollout.journal import Journal

CONFIG = EngineConfig(kv_bytes=48 * 16384, max_seqs=8, threads=1)


@pytest.fixture(scope="module")
def long(groups):
    """Groups that take long enough to kill something meanwhile."""
    return [replace(g, size=8, params=replace(g.params, max_tokens=150, ignore_eos=True)) for g in groups]


@pytest.fixture(scope="module")
def wanted(engine, long):
    return [(r.tokens, r.logprobs, r.text) for r in rollout(engine(128), long).responses]


def told(done):
    return [(r.tokens, r.logprobs, r.text) for r in done.responses]


def test_engines_and_the_draft_server_may_be_killed_in_the_middle(long, wanted):
    seen = []
    killed = []
    with Fleet(CONFIG, 2, drafts="group", report_every=4) as fleet:

        def kill(now):
            server = fleet.draft_server
            if not killed and now.tokens > 480:
                killed.append(fleet.pids()[1])
                os.kill(killed[0], signal.SIGKILL)
            elif len(killed) == 1 and now.done >= 4:
                killed.append(server.pid)
                os.kill(server.pid, signal.SIGKILL)

        done = rollout(fleet, long, policy="divided_rr", chunk=16, on_progress=kill, on_response=seen.append)
        assert len(killed) == 2 and told(done) == wanted
        assert sorted((r.group, r.index) for r in seen) == sorted((r.group, r.index) for r in done.responses)
        again = rollout(fleet, long, policy="auto")
        assert told(again) == wanted and again.preemptions == 0


SCRIPT = """
import sys
from pathlib import Path
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.rollout import Group, rollout
import msgspec
groups = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=list[Group])
engine = Engine(EngineConfig(kv_bytes=48 * 16384, max_seqs=8, threads=1))
rollout(engine, groups, policy="divided_rr", chunk=16, journal=Path(sys.argv[2]),
        on_progress=lambda now: print(now.tokens, flush=True))
"""


def test_a_killed_controller_goes_on_and_no_recorded_token_is_made_again(engine, long, wanted, tmp_path):
    import msgspec

    asked, folder = tmp_path / "groups.json", tmp_path / "journal"
    asked.write_bytes(msgspec.json.encode(long))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, asked, folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    for line in process.stdout:
        if int(line) > 1200 or time.monotonic() > deadline:
            break
    process.kill()
    process.wait()
    process.stdout.close()
    with Journal(folder, long, 0, "0") as journal:
        kept = {name: len(each.tokens) for name, each in journal.kept.items()}
    assert 1000 < sum(kept.values()) < 4800
    fresh = engine(48)
    before = fresh.stats().generated_tokens
    done = rollout(fresh, long, policy="divided_rr", chunk=16, journal=folder)
    assert told(done) == wanted
    assert fresh.stats().generated_tokens - before == done.tokens - sum(kept.values())
    with Journal(folder, long, 1, "0") as journal:
        assert journal.kept == {}, "a finished iteration leaves nothing"


def test_a_journal_of_another_iteration_is_refused(engine, groups, tmp_path):
    with Journal(tmp_path, groups, 0, "0") as journal:
        journal.add([("g0/0", 0, [5], [-1.0], "x", None, 0, 0)])
    with pytest.raises(InvalidRequest, match="other groups, seed or weights"):
        rollout(engine(64), groups, seed=1, journal=tmp_path)


def test_a_full_or_damaged_state_pool_costs_time_and_never_a_token(engine, long, wanted, tmp_path):
    class Damaged(MemoryStates):
        def get(self, name):
            state = super().get(name)
            return None if state is None else state[:-1] + b"?"

    for states in (MemoryStates(1000), Damaged(), FolderStates(tmp_path, 20_000)):
        hosts = LocalHosts([engine(24), engine(24, 1)], states=states)
        done = rollout(hosts, long[:2], policy="divided_rr", chunk=48)
        assert told(done) == wanted[:16]
        assert done.refilled > 0


def test_weights_change_between_iterations_only(engine, groups):
    hosts = LocalHosts([engine(64)])
    name = "model.norm.weight"
    old = np.array(hosts.engines[0]._checkpoint.tensor(name))

    def push(now):
        if now.running:
            with pytest.raises(InvalidRequest, match="between two iterations"):
                hosts.update_weights([(name, old)], "1")

    done = rollout(hosts, groups, on_progress=push)
    assert {r.version for r in done.responses} == {"0"}
    hosts.update_weights([(name, old)], "1")
    after = rollout(hosts, groups)
    assert {r.version for r in after.responses} == {"1"} and told(after) == told(done)

    def swap(now):
        if now.running:
            hosts.engines[0].version = "2"

    with pytest.raises(InvalidRequest, match="weights went from 1 to 2"):
        rollout(hosts, groups, on_progress=swap)
    hosts.engines[0].version = "0"


def test_a_fleet_swaps_weights_and_keeps_them_through_a_death(groups):
    from statepool.engine.hub import resolve
    from statepool.engine.loader import Checkpoint

    name = "model.norm.weight"
    other = (np.array(Checkpoint(resolve("tiny")).tensor(name)) ^ 1).astype(np.uint16)
    with Fleet(CONFIG, 1) as fleet:
        first = told(rollout(fleet, groups))
        fleet.update_weights([(name, other)], "1")
        second = rollout(fleet, groups)
        assert {r.version for r in second.responses} == {"1"} and told(second) != first
        os.kill(fleet.pids()[0], signal.SIGKILL)
        fleet_again = rollout(fleet, groups)
        assert told(fleet_again) == told(second)


def test_weights_that_give_no_numbers_end_the_iteration_by_name(engine, groups):
    hosts = LocalHosts([engine(64)])
    name = "model.norm.weight"
    old = np.array(hosts.engines[0]._checkpoint.tensor(name))
    hosts.update_weights([(name, np.full_like(old, 0x7FC0))], "broken")
    try:
        with pytest.raises(InvalidCheckpoint, match="weights broken give logits that are not finite"):
            rollout(hosts, groups)
        hosts.begin("")
    finally:
        hosts.update_weights([(name, old)], "0")
    assert len(rollout(hosts, groups).responses) == 16


def test_an_engine_process_with_such_weights_says_so_too(groups):
    from statepool.engine.hub import resolve
    from statepool.engine.loader import Checkpoint

    name = "model.norm.weight"
    good = np.array(Checkpoint(resolve("tiny")).tensor(name))
    with Fleet(CONFIG, 1) as fleet:
        fleet.update_weights([(name, np.full_like(good, 0x7FC0))], "broken")
        with pytest.raises(InvalidCheckpoint, match="weights broken give logits that are not finite"):
            rollout(fleet, groups[:1])


def test_a_judge_that_raises_leaves_the_engines_as_they_were(engine, long, wanted, tmp_path):
    seen = []

    def judge(response):
        seen.append(response)
        raise ZeroDivisionError("a verifier of somebody")

    fresh = engine(128)
    with pytest.raises(ZeroDivisionError):
        rollout(fresh, long, policy="divided_rr", chunk=16, on_response=judge, journal=tmp_path)
    assert fresh.pool.free == fresh.pool.total and not fresh.has_work
    heard = []
    done = rollout(fresh, long, policy="divided_rr", chunk=16, on_response=heard.append, journal=tmp_path)
    assert told(done) == wanted, "what was told to the judge was in the journal before"
    assert len(seen) == 1 and len(heard) == len(done.responses)


def test_a_fleet_that_cannot_load_says_so():
    with pytest.raises(Exception, match=r"no-such-model|cannot|not"):
        Fleet(replace(CONFIG, model="no-such-model"), 1)


def test_engines_that_hang_while_they_load_are_ended_with_a_reason(tmp_path, monkeypatch):
    """A file of the model is a pipe that nobody fills."""
    model = write_model(tmp_path / "model")
    (model / "tokenizer.json").unlink()
    os.mkfifo(model / "tokenizer.json")
    started = []
    spawn = LocalLauncher.spawn

    async def noted(self, program):
        started.append(await spawn(self, program))
        return started[-1]

    monkeypatch.setattr(LocalLauncher, "spawn", noted)
    with pytest.raises(Unavailable, match="not loaded within 3 s"):
        Fleet(replace(CONFIG, model=str(model)), 2, start_seconds=3.0)
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2
