"""Engines in their seats, as processes: what happens to one whose replacement does not come up."""

import asyncio
import signal
from dataclasses import replace

from tests.serve.conftest import echo_environment

from statepool.cluster import LocalLauncher
from statepool.engine.config import EngineConfig
from statepool.serve import workers as room
from statepool.serve.workers import Workers


class Stopping(LocalLauncher):
    """Stops the second process it starts, before it can say anything."""

    def __init__(self):
        super().__init__()
        self.started = []

    async def spawn(self, program):
        process = await super().spawn(replace(program, environment=echo_environment()))
        self.started.append(process)
        if len(self.started) == 2:
            process.send_signal(signal.SIGSTOP)
        return process


async def test_a_replacement_that_hangs_while_it_loads_is_replaced(echo_model, monkeypatch):
    monkeypatch.setattr(room, "_LOADING_SECONDS", 3.0)
    launcher = Stopping()
    config = EngineConfig(model=str(echo_model))
    workers = Workers(["mixed"], [config], 8, 60.0, "echo_engine:EchoEngine", launcher)
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
