"""Steps over one wave buffer, and segments that come and go, under ThreadSanitizer, without suppressions."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "src" / "statepool" / "native"
SOURCES = ("sparse/cluster_cache.cpp", "store/crc32c.cpp")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_no_page_is_given_away_while_it_is_read(tmp_path: Path) -> None:
    program = tmp_path / "steps"
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-Wno-tsan", "-pthread", f"-I{NATIVE}"]
    harness = Path(__file__).with_name("buffer_under_tsan.cpp")
    sources = [NATIVE / source for source in SOURCES]
    built = subprocess.run(["g++", *flags, "-o", program, harness, *sources], capture_output=True, text=True)
    if "cannot find -ltsan" in built.stderr:
        pytest.skip("needs libtsan")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program, tmp_path / "clusters"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    assert done.stdout == "done\n"
