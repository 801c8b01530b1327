"""Engines in their seats, as processes: what happens to one whose replacement does not come up."""

import asyncio
import signal
from dataclasses import replace

import pytest
from tests.serve.conftest import echo_environment
from tests.small_models import write_model

from statepool.cluster import LocalLauncher
from statepool.core.errors import InvalidRequest
from statepool.engine.config import EngineConfig
from statepool.serve import workers as room
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
    """Stops the second process it starts, before it can say anything."""

    async def spawn(self, program):
        process = await super().spawn(program)
        if len(self.started) == 2:
            process.send_signal(signal.SIGSTOP)
        return process


async def test_a_replacement_that_hangs_while_it_loads_is_replaced(echo_model, monkeypatch):
    monkeypatch.setattr(room, "_LOADING_SECONDS", 3.0)
    launcher = Stopping()
    config = EngineConfig(model=str(echo_model))
    workers = Workers(["mixed"], [config], 8, 60.0, ECHO, launcher)
    (seat,) = workers.all
    try:
        await workers.start()
        await workers.wait_ready()
        monkeypatch.setattr(workers, "_stall_seconds", 3.0)
        seat.engine.kill()
        await asyncio.wait_for(seat.renewed.wait(), 60)
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
