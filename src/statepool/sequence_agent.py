"""``statepool seq`` with a sandbox at hand: programs that a model writes in a search run there.

The room of sequences knows no sandbox and can be used without one; this is where the two meet.
"""

from __future__ import annotations

from statepool.tasks.sequences import commands

__all__ = ["in_sandbox", "main"]

_SLACK = 3.0
"""Wall seconds per processor second, and as many besides, before a program that sleeps or waits is ended."""


def main(arguments: list[str]) -> int:
    """Run a command of ``statepool seq``."""
    return commands.main(arguments, in_sandbox)


def in_sandbox(program: str, cpu_seconds: int) -> str:
    """What ``program`` prints in a fresh sandbox on one core, with its error at the end; all of it untrusted.

    A program that uses more than ``cpu_seconds`` of processor time is killed by the kernel; what it had printed counts.

    Raises:
        IsolationUnavailable: Nothing can isolate code on this machine.
    """
    from statepool.sandbox import Sandbox

    # the hard limit can be lowered but not raised again, and the processes a program starts have it too
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_CPU, ({cpu_seconds}, {cpu_seconds}))"
    with Sandbox(cpus=1.0, seed=0) as sandbox:
        sandbox.run_code(limit)
        done = sandbox.run_code(program, timeout=_SLACK * (cpu_seconds + 1))
    failed = "" if done.error is None else f"\n{done.error.name}: {done.error.value}"
    return f"{done.logs.stdout}\n{done.text or ''}{failed}"
