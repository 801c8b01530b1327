"""Pool nodes in this process, and clients that a test need not close."""

import socket
import time
from contextlib import contextmanager

import numpy as np

from statepool.kv.pool import Node, NodeConfig, Pool

BLOCK = 4096

clients = []


def client(*arguments, timeout=10, **settings):
    pool = Pool(*arguments, timeout=timeout, **settings)
    clients.append(pool)
    return pool


def chain(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.bytes(16) for _ in range(count)], [rng.integers(0, 256, BLOCK, np.uint8) for _ in range(count)]


def empty(count):
    return [np.zeros(BLOCK, np.uint8) for _ in range(count)]


@contextmanager
def running(address, **settings):
    node = Node(NodeConfig(listen=address, **{"block_bytes": BLOCK, "memory_bytes": 64 * BLOCK, **settings}))
    node.start()
    try:
        yield node
    finally:
        node.close()


def until(holds, seconds=20):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
