"""Small clusters and recorded loads for the simulator's tests."""

import json
import os
from pathlib import Path

import pytest

from statepool.serve.costs import NODES
from statepool.serve.snapshot import SLO


@pytest.fixture
def costs():
    return NODES["a800"]


@pytest.fixture
def slo():
    return SLO()


@pytest.fixture
def trace_file(tmp_path):
    """Writes rows as a Mooncake trace; a string is written as it is."""

    def write(*rows, name="trace.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
        return path

    return write


@pytest.fixture
def conversation():
    """The published conversation trace, if its folder is named."""
    folder = os.environ.get("STATEPOOL_TRACES")
    path = Path(folder or "") / "conversation_trace.jsonl"
    if folder is None or not path.exists():
        pytest.skip("STATEPOOL_TRACES does not name a folder with conversation_trace.jsonl")
    return path
