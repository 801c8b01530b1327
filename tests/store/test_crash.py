"""Power cuts, failing disks and rotten bits, tried on a simulated disk: see native/store/crash_test.h."""

from __future__ import annotations

import pytest

from statepool.store.native import core


def cut(seeds: range, operations: int, least: int) -> None:
    states = 0
    for seed in seeds:
        report = core.crash_test(seed, operations)
        assert report.violation == "", f"seed {seed}: {report.violation}"
        states += report.states
    assert states >= least


def test_power_is_cut_anywhere() -> None:
    cut(range(4), 60, 6_000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_power_is_cut_in_a_hundred_thousand_ways() -> None:
    cut(range(100, 148), 100, 100_000)


def test_the_same_seed_gives_the_same_report() -> None:
    first, second = core.crash_test(9, 30), core.crash_test(9, 30)
    assert (first.states, first.again, first.events) == (second.states, second.again, second.events)


@pytest.mark.parametrize("seed", range(6))
def test_the_disk_fails_anywhere(seed: int) -> None:
    report = core.fault_test(seed, 25)
    assert report.violation == ""
    assert report.states >= 50


@pytest.mark.slow
def test_the_disk_fails_anywhere_in_long_histories() -> None:
    for seed in range(100, 130):
        assert core.fault_test(seed, 80).violation == "", seed


@pytest.mark.parametrize("seed", range(3))
def test_a_bit_rots(seed: int) -> None:
    report = core.rot_test(seed, 60, 800)
    assert report.violation == ""
    assert report.again > 100, "hardly any damage was noticed"


@pytest.mark.slow
def test_many_bits_rot() -> None:
    for seed in range(100, 120):
        assert core.rot_test(seed, 100, 4_000).violation == "", seed
