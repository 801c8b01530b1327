"""Engines in their seats, as processes: what happens to one that, or whose replacement, does not come up."""

import asyncio
import signal
import time
from dataclasses import replace

import pytest
from tests.serve.conftest import echo_environment
from tests.small_models import write_model

from statepool.cluster import LocalLauncher
from statepool.core.errors import InvalidRequest, Unavailable
from statepool.engine.config import EngineConfig
from statepool.serve import engine_client
from statepool.serve.weights import has_every_tensor
from statepool.serve.workers import Workers

ECHO = "echo_engine:EchoEngine"


class Echoing(LocalLauncher):
    """Its processes find the echo engine."""

    def __init__(self):
        super().__init__()
        self.started = []

    async def spawn(self, program):
        process = await super().spawn(replace(program, environment=echo_environment()))
        self.started.append(process)
        return process


class Stopping(Echoing):
    """Stops one of the processes it starts, before it can say anything."""

    def __init__(self, which):
        super().__init__()
        self.which = which
        self.stopped = asyncio.Event()

    async def spawn(self, program):
        process = await super().spawn(program)
        if len(self.started) == self.which:
            process.send_signal(signal.SIGSTOP)
            self.stopped.set()
        return process


@pytest.mark.parametrize("hangs", [1, 2])
async def test_an_engine_that_hangs_at_its_first_start_is_told_and_ended(echo_model, monkeypatch, hangs):
    monkeypatch.setattr(engine_client, "_SILENT_SECONDS", 3.0)
    launcher = Stopping(hangs)
    workers = Workers(["mixed"] * 2, [EngineConfig(model=str(echo_model))] * 2, 8, 60.0, ECHO, launcher)
    try:
        await asyncio.wait_for(workers.start(), 60)
        with pytest.raises(Unavailable, match="no sign of life for 3 s while it loaded"):
            await asyncio.wait_for(workers.wait_ready(), 60)
    finally:
        await asyncio.wait_for(workers.close(), 60)
    assert launcher.started[hangs - 1].returncode == -signal.SIGKILL
    assert launcher.started[2 - hangs].returncode is not None


async def test_closing_does_not_wait_for_an_engine_that_hangs(echo_model):
    """It has not connected yet, so the message that tells it to stop stays where it is."""
    launcher = Stopping(1)
    workers = Workers(["mixed"], [EngineConfig(model=str(echo_model))], 8, 60.0, ECHO, launcher)
    starting = asyncio.create_task(workers.start())
    await launcher.stopped.wait()
    await asyncio.sleep(0.1)  # its first message waits
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await asyncio.wait_for(workers.close(), 30)
    assert launcher.started[0].returncode == -signal.SIGKILL


async def test_a_replacement_that_hangs_while_it_loads_is_replaced(echo_model, monkeypatch):
    launcher = Stopping(2)
    config = EngineConfig(model=str(echo_model))
    workers = Workers(["mixed"], [config], 8, 60.0, ECHO, launcher)
    (seat,) = workers.all
    try:
        begun = time.monotonic()
        await workers.start()
        await workers.wait_ready()
        # A busy machine starts slowly, and the third must not be taken for one that hangs.
        monkeypatch.setattr(engine_client, "_SILENT_SECONDS", 2 + 5 * (time.monotonic() - begun))
        seat.engine.kill()
        await asyncio.wait_for(seat.renewed.wait(), 240)
        assert (await seat.engine.refresh_stats()).kv_blocks_total == 10
        assert seat.replaced == 1
        assert launcher.started[1].returncode == -signal.SIGKILL
        assert len(launcher.started) >= 3
    finally:
        await workers.close()


async def test_an_engine_in_the_place_of_another_has_its_weights_and_rests_as_it_did(echo_model, tmp_path):
    """Another version, or an engine that runs while all rest, would answer with other tokens."""
    part, whole, later = (str(write_model(tmp_path / name)) for name in ("part", "whole", "later"))
    workers = Workers(["mixed"] * 2, [EngineConfig(model=str(echo_model))] * 2, 8, 60.0, ECHO, Echoing())
    lost = workers.all[0]

    async def replaced():
        lost.renewed.clear()
        lost.engine.kill()
        await asyncio.wait_for(lost.renewed.wait(), 60)
        return [await worker.engine.refresh_stats() for worker in workers.all]

    try:
        await workers.start()
        await workers.wait_ready()
        for version, folder in enumerate((part, whole, later)):
            await workers.order("update_weights", path=folder, version=str(version))
        await workers.order("pause")
        assert [(stats.weight_version, stats.paused) for stats in await replaced()] == [("2", True)] * 2
        await workers.order("resume")
        await workers.order("update_weights", path=part, version="3")
        assert [(stats.weight_version, stats.paused) for stats in await replaced()] == [("3", False)] * 2
        with pytest.raises(InvalidRequest, match="update_info"):
            await workers.order("update_weights", path=str(tmp_path / "nowhere"), version="4")
        assert [stats.weight_version for stats in await replaced()] == ["3", "3"]
    finally:
        await workers.close()


def test_only_a_checkpoint_with_every_tensor_makes_earlier_ones_void(tmp_path):
    model, deeper = write_model(tmp_path / "model"), write_model(tmp_path / "deeper", num_hidden_layers=3)
    assert has_every_tensor(str(model), str(model))
    assert has_every_tensor(str(deeper), str(model))
    assert not has_every_tensor(str(model), str(deeper))
    assert not has_every_tensor(str(tmp_path / "nowhere"), str(model))
