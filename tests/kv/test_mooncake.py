"""Blocks through Mooncake's own transfer engine, between two processes."""

import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from statepool.core.errors import InvalidConfig
from statepool.kv.pool import NodeConfig, Pool, protocol
from statepool.kv.pool.link import NodeLink, _Moved
from statepool.kv.pool.mooncake import Mover, missing

BLOCK = 1 << 20
needs = pytest.mark.skipif(missing() is not None, reason=f"Mooncake's transfer engine: {missing()}")


@pytest.fixture
def node():
    """A node that offers it, as a process: (address, process)."""
    command = [
        "-m",
        "statepool.kv.pool.commands",
        "serve",
        "--listen",
        "tcp://127.0.0.1:0",
        "--block-bytes",
        str(BLOCK),
    ]
    process = subprocess.Popen(
        [sys.executable, *command, "--memory-bytes", "64MiB", "--transfer", "tcp", "--with-parent"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    line = ""
    while "pool node at" not in line:
        line = process.stdout.readline()
        assert line, "the node did not start"
    yield line.split()[3].rstrip(":"), process
    process.kill()
    process.wait()
    process.stdout.close()


def chain(count, seed):
    rng = np.random.default_rng(seed)
    return [rng.bytes(16) for _ in range(count)], [rng.integers(0, 256, BLOCK, np.uint8) for _ in range(count)]


@needs
def test_blocks_move_and_a_lost_node_is_a_miss(node):
    address, process = node
    keys, rows = chain(48, 1)
    writer, reader = (Pool([address], BLOCK, timeout=5) for _ in range(2))
    assert writer.save(keys, rows) == 48
    out = [np.zeros(BLOCK, np.uint8) for _ in keys]
    assert reader.load(keys, out) == 48
    assert all(np.array_equal(a, b) for a, b in zip(out, rows, strict=True))
    assert all(isinstance(pool.links[0].lanes[0]._memory, _Moved) for pool in (writer, reader)), "not by the socket"

    # Whoever writes where he has no right any more is found out by the checksum, and the block is dropped.
    link = writer.links[0].lanes[0]
    lease = link._ask(protocol.Get(keys[:1]), protocol.Granted)
    link._tell(protocol.Release(lease.lease))
    link._memory.write(lease.slots, [np.zeros(BLOCK, np.uint8)])
    assert reader.load(keys, out) == 0
    assert reader.counts.corrupt == 1
    assert reader.match(keys) == 0

    process.send_signal(signal.SIGKILL)
    process.wait()
    began = time.monotonic()
    assert reader.load(keys[1:], out) == 0
    assert time.monotonic() - began < 60
    for pool in (writer, reader):
        pool.close()


def test_what_cannot_be_is_named(tmp_path):
    with pytest.raises(InvalidConfig, match="tcp:// address"):
        NodeConfig(listen=f"unix:{tmp_path / 'n'}", block_bytes=BLOCK, transfer="tcp")
    with pytest.raises(InvalidConfig, match="tcp, rdma"):
        Mover("127.0.0.1", "pigeon")


@pytest.mark.skipif(missing() is None, reason="it is installed")
def test_a_client_without_it_uses_the_socket(caplog):
    link = NodeLink("tcp://127.0.0.1:1", BLOCK)
    link._socket = socket.socket()
    try:
        assert link._reach(protocol.Welcome("n", 1, 1, 1, BLOCK, "tcp", "127.0.0.1:1", 0)) is None
    finally:
        link.close()
    assert "travel through its socket" in caplog.text
