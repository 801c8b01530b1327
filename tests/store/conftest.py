"""Stores whose owners were killed leave their heap in shared memory for the next owner; tests have none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def shared_memory_of_killed_stores(tmp_path: Path) -> Iterator[None]:
    yield
    for meta in tmp_path.rglob("meta"):
        uuid = meta.read_bytes()[4096 + 8 : 4096 + 24].hex()
        for heap in Path("/dev/shm").glob(f"statepool-{uuid}*") if uuid else ():
            heap.unlink(missing_ok=True)
