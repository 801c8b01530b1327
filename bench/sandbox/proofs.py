"""T10, T20, T22 and the escapes: counts, by the suite's own tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench import proofs
from bench.proofs import Proof
from bench.row import Row

_ISOLATION, _SERVER, _POOL = (f"tests/sandbox/test_{name}.py" for name in ("isolation", "server", "pool"))
PROOFS = (
    Proof(
        "T10",
        "swaps of tenants in one pool, every channel looked at after each, until something was left: nothing was",
        "swaps",
        "higher",
        10_000,
        "sum",
        (f"{_ISOLATION}::test_nothing_is_left_in_ten_thousand_swaps",),
        "swaps",
    ),
    Proof("T20", "tests with E2B's own SDKs that pass", "tests", "higher", 13, "passed", (_SERVER,)),
    Proof(
        "T22",
        "managers killed at random points, after which no process, mount or cgroup was left",
        "kills",
        "higher",
        100,
        "max",
        (f"{_POOL}::test_a_hundred_killed_managers_leave_nothing",),
        "kills",
    ),
    Proof(
        "T25",
        "ways out, ways to exhaust the machine and leftovers that were tried and did not work",
        "failures",
        "lower",
        0,
        "failed",
        (_ISOLATION,),
    ),
)


def run(only: Sequence[str], quick: bool) -> Iterator[Row]:
    """The wanted rows; the long campaigns are left out of a quick run."""
    chosen = [proof for proof in PROOFS if not quick or proof.id in ("T20", "T25") or proof.id in only]
    yield from proofs.run(chosen, only)
