"""One engine on the bundled model for the whole folder, and a world for its conversations."""

import pytest

from statepool import bundled
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.train.policy import load
from statepool.train.weights import Publisher, take_up


@pytest.fixture(scope="session")
def shared_engine():
    settings = {"kv_bytes": 64 << 20, "max_seqs": 64, "max_batched_tokens": 1024, "threads": 1}
    return Engine(EngineConfig(quant="fp32", **settings))


@pytest.fixture
def engine(shared_engine, tmp_path):
    """The engine with the weights it came with."""
    if shared_engine.version != "0":
        publisher = Publisher(tmp_path / "original")
        publisher.publish(load(bundled.path()).tensors(), "0")
        take_up(shared_engine, publisher.folder)
    return shared_engine
