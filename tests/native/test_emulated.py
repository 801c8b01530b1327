"""The AVX-512 kernels on a machine that lacks AVX-512: a build against SIMDe runs the same tests of bits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from statepool.native import kernels

ROOT = Path(__file__).parents[2]
# Puts the emulated module where statepool.native looks first, whatever is installed.
RUN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("statepool.native._kernels", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
from statepool.native import kernels
assert kernels is module and module.best_isa() == "avx512"
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--import-mode=importlib", *sys.argv[2:]]))
"""
HEADER = Path("/usr/include/simde/x86/avx512.h")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_emulated_avx512_gives_the_same_bits(tmp_path: Path) -> None:
    if kernels is None:
        pytest.skip("needs the native module")
    if kernels.best_isa() in ("avx512", "amx"):
        pytest.skip("this machine runs the AVX-512 kernels in every other test")
    if not HEADER.exists() or not shutil.which("cmake"):
        pytest.skip("needs cmake and the SIMDe headers (Debian: libsimde-dev)")
    build = Path(os.environ.get("STATEPOOL_SIMDE_BUILD", tmp_path / "build"))
    configure = ["cmake", "-S", ROOT, "-B", build, "-DSTATEPOOL_SIMDE=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build, "-j", "2"], check=True, capture_output=True)
    names = ("test_linear.py", "test_lanes.py", "test_attention.py")
    tests = [str(Path(__file__).parent / name) for name in names]
    run = subprocess.run(
        [sys.executable, "-c", RUN, str(next(build.glob("_kernels*.so"))), *tests],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
