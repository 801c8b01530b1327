"""Rows that are counts, not times: they run the very tests of the suite and read what these recorded.

A test says how much it covered with pytest's ``record_property``; nothing is measured twice in two ways.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from bench.duel import ROOT
from bench.row import Row


@dataclass(frozen=True, slots=True)
class Proof:
    """One claim and the tests that prove it.

    ``count`` says what the value is: the largest or the summed property ``record`` of the tests, the number of tests
    that ``passed``, or the number that ``failed``.
    """

    id: str
    what: str
    unit: str
    better: Literal["higher", "lower"]
    target: float
    count: Literal["max", "sum", "passed", "failed"]
    tests: tuple[str, ...]
    record: str = ""


def run(proofs: Sequence[Proof], only: Sequence[str]) -> Iterator[Row]:
    """Run the wanted ones of ``proofs``."""
    for proof in proofs:
        if not only or proof.id in only or proof.id.rstrip("abcd") in only:
            yield _prove(proof)


def _prove(proof: Proof) -> Row:
    row = Row(proof.id, proof.what, proof.unit, proof.better, proof.target)
    row.command = f"python -m pytest {' '.join(proof.tests)}"
    missing = [test for test in proof.tests if not (ROOT / test.partition("::")[0]).exists()]
    if missing:
        row.note = f"no such test yet: {', '.join(missing)}"
        return row
    cases, said = _cases(proof.tests)
    if not cases:
        row.note = said
        return row
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    row.own = f"{passed} of {len(cases)} tests pass"
    if failed:
        row.note = "failed: " + ", ".join(str(case.get("name")) for case in failed[:5])
    if proof.count in ("passed", "failed"):
        row.value = float(passed if proof.count == "passed" else len(failed))
    elif not failed:
        row.value = _recorded(proof, cases)
    return row


@cache
def _cases(tests: tuple[str, ...]) -> tuple[tuple[ET.Element, ...], str]:
    """Run tests, once however many claims rest on them: how each went, or why none was run."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={report}"]
        env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "pytest", *tests, *options]
        ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        if not report.exists():
            return (), f"pytest ended with {ran.returncode}: {ran.stdout.strip()[-200:]}"
        cases = tuple(ET.parse(report).getroot().iter("testcase"))
    return cases, f"no test was run: {ran.stdout.strip()[-200:]}"


def _recorded(proof: Proof, cases: Sequence[ET.Element]) -> float | None:
    entries = [entry for case in cases for entry in case.iter("property") if entry.get("name") == proof.record]
    found = [float(entry.get("value", "nan")) for entry in entries]
    return (max(found) if proof.count == "max" else sum(found)) if found else None
