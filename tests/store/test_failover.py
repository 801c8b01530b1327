"""Fifty primaries, each killed under load: their mirrors take over with every acknowledged write, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.store.failover import failovers


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_killed_primaries_lose_nothing(tmp_path: Path) -> None:
    found = failovers(tmp_path, 50)
    assert len(found.seconds) == 50
    assert found.acknowledged > 500
    assert (found.lost, found.doubled, found.unexplained) == (0, 0, 0)
