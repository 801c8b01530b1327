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


_ENGINE = "tests/engine"
PROOFS = (
    Proof(
        "P1",
        "fp32 logits against transformers: largest relative L2 of any position, models drawn",
        "rel. L2",
        "lower",
        1e-5,
        "max",
        (f"{_ENGINE}/test_parity_hf.py",),
        "rel_l2",
    ),
    Proof(
        "D1",
        "bit-equal results alone, batched, chunked, cached, preempted, drafted, moved: drawn cases",
        "cases",
        "higher",
        200,
        "passed",
        (f"{_ENGINE}/test_determinism.py::test_same_bits_whatever_happens",),
    ),
    Proof(
        "D2",
        "score() equals the log-probabilities of generation, every bit: drawn cases",
        "cases",
        "higher",
        200,
        "sum",
        (f"{_ENGINE}/test_score.py",),
        "cases",
    ),
    Proof(
        "K1",
        "prefix hits equal an independent simulator, no block leaks",
        "failures",
        "lower",
        0,
        "failed",
        (
            f"{_ENGINE}/test_prefix_cache.py",
            f"{_ENGINE}/test_engine.py::test_no_block_leaks_whatever_is_submitted_and_aborted",
        ),
    ),
    Proof(
        "S1",
        "drawn JSON schemas, four budgets each from the shortest possible: closed, parsed, valid",
        "schemas",
        "higher",
        500,
        "sum",
        (f"{_ENGINE}/text/test_grammar_closing.py::test_five_hundred_schemas_close",),
        "schemas",
    ),
    Proof(
        "S2",
        "speculation changes no token; sampled tokens follow the model (chi-square)",
        "failures",
        "lower",
        0,
        "failed",
        (f"{_ENGINE}/test_speculate.py",),
    ),
    Proof(
        "A1",
        "openai and anthropic clients unmodified; schemathesis over the whole schema",
        "failures",
        "lower",
        0,
        "failed",
        ("tests/e2e/test_server.py", "tests/e2e/test_contract.py"),
    ),
    Proof(
        "A2a",
        "64 streaming clients, half leave at random: nothing is left behind",
        "failures",
        "lower",
        0,
        "failed",
        (
            "tests/e2e/test_server.py::test_64_streams_of_which_half_disconnect",
            "tests/e2e/test_server.py::test_crowds_for_a_while_leave_nothing_behind",
        ),
    ),
)


def run(only: Sequence[str]) -> Iterator[Row]:
    """Run the wanted proofs."""
    for proof in PROOFS:
        if not only or proof.id in only or proof.id[:2] in only:
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
        options = ["-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={report}"]
        env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "pytest", *proof.tests, *options]
        ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        if not report.exists():
            row.note = f"pytest ended with {ran.returncode}: {ran.stdout.strip()[-200:]}"
            return row
        cases = list(ET.parse(report).getroot().iter("testcase"))
    if not cases:
        row.note = f"no test was run: {ran.stdout.strip()[-200:]}"
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


def _recorded(proof: Proof, cases: Sequence[ET.Element]) -> float | None:
    entries = [entry for case in cases for entry in case.iter("property") if entry.get("name") == proof.record]
    found = [float(entry.get("value", "nan")) for entry in entries]
    return (max(found) if proof.count == "max" else sum(found)) if found else None
