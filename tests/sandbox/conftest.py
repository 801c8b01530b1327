import socket

import pytest

from statepool.sandbox import caps

USABLE = [item.name for item in caps.probe() if item.works and item.name in ("ns", "userns")]


@pytest.fixture(scope="session")
def pool():
    """One pool for the tests that leave nothing behind."""
    if not USABLE:
        pytest.skip(f"no driver works here: {[item.found for item in caps.probe()[:2]]}")
    from statepool.sandbox import Pool

    with Pool(low=1, high=3) as made:
        yield made


@pytest.fixture
def sandbox(pool):
    from statepool.sandbox import Sandbox

    with Sandbox(pool=pool) as made:
        yield made


def free_port():
    """A port of this machine that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
