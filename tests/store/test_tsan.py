"""Readers beside a writer under ThreadSanitizer, without suppressions."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "src" / "statepool" / "native" / "store"
BOUND_TO_PYTHON = {"module.cpp", "ablation.cpp", "crash_test.cpp"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_no_data_race_between_readers_and_writer(tmp_path: Path) -> None:
    sources = [p for p in NATIVE.glob("*.cpp") if p.name not in BOUND_TO_PYTHON and not p.stem.endswith("_bindings")]
    program = tmp_path / "readers"
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-Wno-tsan", "-pthread", f"-I{NATIVE}"]
    harness = Path(__file__).with_name("readers_under_tsan.cpp")
    built = subprocess.run(["g++", *flags, "-o", program, harness, *sources], capture_output=True, text=True)
    if "cannot find -ltsan" in built.stderr:
        pytest.skip("needs libtsan")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program, tmp_path / "s", "2000"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    assert " 0 torn" in done.stdout
