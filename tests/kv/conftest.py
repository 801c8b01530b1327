"""What every test of blocks leaves behind: nothing."""

import pytest
from tests.kv.pools import clients


@pytest.fixture(autouse=True)
def _closed():
    yield
    while clients:
        clients.pop().close()
