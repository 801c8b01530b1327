"""Random checkpoints, attention workers in threads of this process, and engines over them."""

import tempfile
from pathlib import Path

import pytest
from tests.small_models import write_model

from statepool.native import kernels

if kernels is None:
    pytest.skip("needs the native module", allow_module_level=True)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A random model with two KV heads and room for contexts of several segments."""
    return write_model(tmp_path_factory.mktemp("models") / "random", max_position_embeddings=4096)


@pytest.fixture
def nodes():
    """A function that starts attention workers and gives their addresses; they listen on real sockets."""
    from statepool.engine.attention.remote.node import AttentionNode

    running = []
    with tempfile.TemporaryDirectory() as folder:

        def start(count, kind="unix"):
            for _ in range(count):
                name = f"unix:{Path(folder) / f'n{len(running)}'}"
                node = AttentionNode(name if kind == "unix" else "tcp://127.0.0.1:0")
                node.start()
                running.append(node)
            return [node.reachable for node in running[-count:]]

        start.running, start.folder = running, folder
        yield start
        for node in running:
            node.close()


@pytest.fixture
def engines(checkpoint):
    """A function that builds an engine over the random model; its connections end with the test."""
    from statepool.engine.config import EngineConfig
    from statepool.engine.engine import Engine

    made = []

    def make(model=None, **settings):
        given = {"threads": 1, "kv_bytes": 4 << 20, **settings}
        made.append(Engine(EngineConfig(model=str(model or checkpoint), **given)))
        return made[-1]

    yield make
    for engine in made:
        if hasattr(engine.runner, "close"):
            engine.runner.close()
