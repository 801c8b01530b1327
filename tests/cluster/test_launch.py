"""Processes that start, announce themselves and end: as children, and under Ray, by the same tests."""

import asyncio
import importlib.util
import signal

import pytest

from statepool.cluster import LocalLauncher, Program, launcher
from statepool.core.errors import InvalidConfig, Unavailable
from statepool.kv.pool.link import NodeLink

NODE = ("serve", "--with-parent", "--listen", "tcp://{host}:0", "--block-bytes", "64", "--memory-bytes", "64KiB")
POOL = "statepool.kv.pool.commands"
WAYS = ["local", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore")])]


@pytest.fixture(params=WAYS)
def make(request):
    """What makes a launcher; call it inside the event loop."""
    if request.param == "local":
        return LocalLauncher
    pytest.importorskip("ray")
    return lambda: launcher("local")


async def test_a_process_announces_itself_and_ends_by_a_signal(make):
    starts = make()
    try:
        process = await starts.spawn(Program(POOL, NODE, announces=True))
        assert process.returncode is None
        link = NodeLink(process.announcement.split()[3].rstrip(":"))
        assert link.stats().slots == 1024
        link.close()
        process.send_signal(signal.SIGKILL)
        assert await asyncio.wait_for(process.wait(), 10) == -signal.SIGKILL
        assert process.returncode == -signal.SIGKILL
        process.send_signal(signal.SIGKILL)  # nothing happens
    finally:
        await starts.close()


async def test_a_process_that_cannot_start_says_so(make):
    starts = make()
    try:
        with pytest.raises(Unavailable, match="did not start; what it wrote on stderr says why"):
            await starts.spawn(Program(POOL, (*NODE, "--eviction", "none"), announces=True))
        ended = await starts.spawn(Program(POOL, ("stats", "unix:/nowhere")))
        assert await asyncio.wait_for(ended.wait(), 20) == 2
    finally:
        await starts.close()


async def test_the_environment_is_added_to(make, tmp_path):
    (tmp_path / "told.py").write_text("import os, sys; sys.exit(int(os.environ['TOLD']) + int('PATH' in os.environ))")
    starts = make()
    try:
        process = await starts.spawn(Program("told", environment={"PYTHONPATH": str(tmp_path), "TOLD": "41"}))
        assert await asyncio.wait_for(process.wait(), 20) == 42
    finally:
        await starts.close()


async def test_close_ends_what_runs(make):
    starts = make()
    processes = [await starts.spawn(Program(POOL, NODE, announces=True)) for _ in range(2)]
    await starts.close()
    for process in processes:
        assert process.returncode == -signal.SIGKILL


def test_without_ray_the_error_says_what_to_install():
    if importlib.util.find_spec("ray"):
        pytest.skip("ray is installed")
    with pytest.raises(InvalidConfig, match="pip install"):
        launcher("auto")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_nobody_at_the_address():
    pytest.importorskip("ray")
    with pytest.raises(InvalidConfig, match=r"no Ray cluster answers at '127.0.0.1:9'"):
        launcher("127.0.0.1:9")
