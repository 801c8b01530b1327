"""The names of the package lead to functions and classes, whatever was imported before."""

from __future__ import annotations

import subprocess
import sys

from statepool.tasks import topology


def test_names_are_not_hidden_by_modules() -> None:
    code = (
        "from statepool.tasks import topology\n"
        "import statepool.tasks.topology.commands, statepool.tasks.topology.task\n"
        "print([n for n in topology.__all__ if not callable(getattr(topology, n))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert topology.census is not topology.scan
