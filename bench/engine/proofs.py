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
from pathlib import Path
from typing import Literal

from bench.duel import ROOT
from bench.row import Row


@dataclass(frozen=True, slots=True)
class Proof:
    """One claim, the tests that prove it, and the recorded property that is its value.

    ``how`` combines the values of several tests; with no property, the value counts passed tests.
    """

    id: str
    what: str
    target: float
    tests: tuple[str, ...]
    record: str = ""
    how: Literal["max", "sum"] = "sum"
    unit: str = "tests"
    better: Literal["higher", "lower"] = "higher"


PROOFS = (
    Proof(
        "P1",
        "fp32 logits against transformers: largest relative L2 over the drawn matrix",
        1e-5,
        ("tests/engine/test_parity_hf.py",),
        "rel_l2",
        "max",
        "rel. L2",
        "lower",
    ),
)


def run(only: Sequence[str]) -> Iterator[Row]:
    """Run the wanted proofs."""
    for proof in PROOFS:
        if not only or proof.id in only:
            yield _prove(proof)


def _prove(proof: Proof) -> Row:
    row = Row(proof.id, proof.what, proof.unit, proof.better, proof.target)
    row.command = f"python -m pytest {' '.join(proof.tests)}"
    missing = [test for test in proof.tests if not (ROOT / test.partition("::")[0]).exists()]
    if missing:
        row.note = f"no such test yet: {', '.join(missing)}"
        return row
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "pytest", *proof.tests, *options]
        ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        if not report.exists():
            row.note = f"pytest ended with {ran.returncode}: {ran.stdout.strip()[-200:]}"
            return row
        cases = list(ET.parse(report).getroot().iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    row.own = f"{len(cases) - len(failed) - len(skipped)} of {len(cases)} tests pass"
    if failed:
        row.note = "failed: " + ", ".join(str(case.get("name")) for case in failed[:5])
        row.value = None if proof.record else float(len(cases) - len(failed) - len(skipped))
        return row
    row.value = _value(proof, cases, len(cases) - len(skipped))
    return row


def _value(proof: Proof, cases: Sequence[ET.Element], passed: int) -> float | None:
    if not proof.record:
        return float(passed)
    found = [
        float(entry.get("value", "nan"))
        for case in cases
        for entry in case.iter("property")
        if entry.get("name") == proof.record
    ]
    return (max(found) if proof.how == "max" else sum(found)) if found else None
