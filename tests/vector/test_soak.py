"""Many searches by many threads, plain and under the sanitizers, without suppressions."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PYTHON = {"module.cpp", "live_bindings.cpp"}
NATIVE = Path(__file__).parents[2] / "src" / "statepool" / "native"
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def soak(folder: Path, harness: str, rounds: int, *flags: str) -> str:
    """Compile a harness with the room's sources, in plain C++ kernels, and run it."""
    program = folder / harness
    sources = [path for path in (NATIVE / "graph").glob("*.cpp") if path.name not in PYTHON]
    common = ["-std=c++20", "-pthread", "-ffp-contract=off", f"-I{NATIVE / 'graph'}"]
    generic = ["-DSTATEPOOL_NS=generic", "-DSTATEPOOL_ISA_generic"]
    objects = []
    shared = [NATIVE / "isa.cpp", NATIVE / "store" / "crc32c.cpp"]
    for source in [*sources, *shared, Path(__file__).with_name(f"{harness}.cpp")]:
        target = folder / f"{source.stem}.o"
        kernel = generic if source.stem.endswith("_kernels") else []
        built = subprocess.run(
            ["g++", *common, *flags, *kernel, "-c", source, "-o", target], capture_output=True, text=True
        )
        assert built.returncode == 0, built.stderr
        objects.append(target)
    linked = subprocess.run(["g++", *flags, "-pthread", "-o", program, *objects], capture_output=True, text=True)
    if "cannot find -l" in linked.stderr:
        pytest.skip("needs the sanitizer's library")
    assert linked.returncode == 0, linked.stderr
    done = subprocess.run([program, str(rounds)], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_a_million_searches_lose_nothing(tmp_path: Path) -> None:
    assert "1000000 searches" in soak(tmp_path, "soak", 1_000_000, "-O2", "-mfma" if _has_fma() else "-O2")


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_no_race_and_no_stray_access(sanitizer: str, tmp_path: Path) -> None:
    flags = ["-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    assert " 0 wrong" in soak(tmp_path, "soak", 6000, *flags)
    assert " 0 wrong" in soak(tmp_path, "live_soak", 40, *flags)


def _has_fma() -> bool:
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and " fma " in cpu.read_text()
