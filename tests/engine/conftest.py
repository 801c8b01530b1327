"""A small random checkpoint, and engines over it."""

import pytest
from tests.small_models import write_model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Directory of a random Qwen3-shaped model."""
    return write_model(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture
def make_checkpoint(tmp_path):
    """A function that writes one more checkpoint, with changed config fields."""

    def make(name="model", **changes):
        return write_model(tmp_path / name, **changes)

    return make


@pytest.fixture
def make_engine(checkpoint):
    """A function that builds an engine over the random model; keyword arguments go to EngineConfig."""
    from statepool.engine.config import EngineConfig
    from statepool.engine.engine import Engine

    def make(model=None, blocks=64, **settings):
        probe = {"kv_bytes": blocks * 2 * 2 * 2 * 16 * 32 * (4 if settings.get("quant") == "fp32" else 2)}
        return Engine(EngineConfig(model=str(model or checkpoint), **{"threads": 1, **probe, **settings}))

    return make
