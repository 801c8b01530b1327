"""Rows keep, verdicts follow targets, and a miss is printed as a miss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.bounds import Bounds
from bench.checkpoint import SHAPES
from bench.row import Row, merge

from bench import report

MACHINE = {"processor": "P", "cores": 2, "instructions": ["avx2"], "memory_gb": 8.0, "python": "3.11"}


def test_verdict_follows_the_better_side() -> None:
    assert Row("a", "", "x", "higher", 1.0, value=1.0).passed is True
    assert Row("a", "", "s", "lower", 1.0, value=1.1).passed is False
    assert Row("a", "", "x", "higher", 1.0).passed is None


def test_a_second_run_replaces_only_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "r" / "engine.json"
    merge(
        file, "engine", MACHINE, [Row("E1", "one", "x", "higher", 1.3, value=1.0), Row("E2", "two", "x", "higher", 1)]
    )
    merge(file, "engine", MACHINE, [Row("E1", "one", "x", "higher", 1.3, value=1.5)])
    rows = {row["id"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows["E1"]["value"] == 1.5
    assert rows["E1"]["pass"] is True
    assert rows["E2"]["pass"] is None


def test_every_row_keeps_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PAGE", tmp_path / "docs" / "benchmarks.md")
    file, other = tmp_path / "results" / "engine.json", MACHINE | {"processor": "Q"}
    rows = [Row(f"E{number}", "one", "x", "higher", 1.3, value=1.0, at=f"day {number}") for number in (1, 2, 3)]
    merge(file, "engine", MACHINE, rows)
    merge(file, "engine", other, rows[1:2])
    report.write(tmp_path / "results")
    page = report.PAGE.read_text()
    assert "Machine of E1, E3: P, 2 cores, avx2, 8.0 GB" in page and "revision): day 1 to day 3." in page
    assert "Machine of E2: Q, 2 cores, avx2, 8.0 GB" in page and "revision): day 2." in page
    merge(file, "engine", other, rows)
    report.write(tmp_path / "results")
    assert "\nMachine: Q, 2 cores" in report.PAGE.read_text()


def test_misses_and_gaps_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PAGE", tmp_path / "docs" / "benchmarks.md")
    rows = [
        Row("E1", "one", "x", "higher", 1.3, value=1.5),
        Row("E2", "two", "x", "higher", 1.4, value=0.9, peer="other", peer_value=10.0, peer_unit="tok/s"),
        Row("E3", "three", "x", "higher", 1.7, note="other is not installed"),
    ]
    merge(tmp_path / "results" / "engine.json", "engine", MACHINE, rows)
    report.write(tmp_path / "results")
    page = report.PAGE.read_text()
    assert "1 of 3 targets met. Missed: E2. Not measured: E3." in page
    assert "| E2 | two | 0.90× | ≥ 1.40× | **no** |" in page
    assert "- **E3** other is not installed" in page


def test_bounds_count_bytes_and_multiply_adds() -> None:
    shape, bounds = SHAPES["qwen3-0.6b"], Bounds(gigahertz=1.0, read_gbs=1.0, threads=1)
    seconds = bounds.decode_seconds(shape, "int8", batch=2, context=10)
    assert seconds == pytest.approx((440_401_920 + 155_582_464 + 20 * 114_688) / 1e9)
    linear = (100 * 440_401_920 + 155_582_464) / 32e9
    assert bounds.prefill_seconds(shape, "int8", 1, 100, "avx2") == pytest.approx(
        linear + 28 * 16 * 128 * 100 * 101 / 16e9
    )
