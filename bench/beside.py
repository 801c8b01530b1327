"""Processes that run beside a measurement."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

from bench.duel import ROOT


def run_beside(stack: ExitStack, module: str, *arguments: object) -> None:
    """Run a module until ``stack`` ends. It is ready, which it tells by a line, when this returns."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    assert process.stdout is not None
    assert process.stdout.readline(), f"{module} ended before it was ready"
