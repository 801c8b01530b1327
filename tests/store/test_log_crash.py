"""The power is cut to a log in every way; see crash_log.h for what is drawn and what must hold."""

from __future__ import annotations

import pytest
from tests.store.logs import SECTOR, drawn
from tests.store.raw_log import LogReader

from statepool.native import _store  # type: ignore[attr-defined]


def check(seed: int, steps: int) -> int:
    report = _store.crash_log(seed, steps)
    assert not report.violation, f"seed {seed}, {steps} steps: {report.violation}"
    assert report.states > 1000 and report.again > 0
    return int(report.states)


@pytest.mark.parametrize("seed", range(8))
def test_power_cuts(seed: int) -> None:
    check(seed, 8)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_power_cuts_in_a_million_ways() -> None:
    states = seed = 0
    while states < 1_000_000:
        states += check(1000 + seed, 20)
        seed += 1


def test_the_other_reader_sees_the_same_after_power_cuts() -> None:
    logged = drawn(0, 5)
    for point, (kind, _, _, _, size) in enumerate(logged.disk.history):
        if kind != "write" or size > 3 * SECTOR:
            continue
        changed = logged.disk.outstanding(point)
        assert changed <= size // 512
        for kept in ([], [0], list(range(changed // 2)), list(range(1, changed)), list(range(changed))):
            files = dict(logged.disk.crash(point, kept))
            if not any(files.get("meta", b"")):
                continue
            reader = LogReader(files)
            bodies = [r.body for r in reader]
            assert len(bodies) in logged.ends
            assert bodies == [_store.decode_record(r)[1] for r in logged.records[: len(bodies)]]
