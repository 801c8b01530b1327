"""Build the source distribution and its wheels; on Linux a wheel gets the manylinux tag it earns.

Two wheels serve all versions: one for 3.11, one by the stable ABI for 3.12 and later. Each needs a Python of its kind.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
KINDS = {"3.11": ["python3.11"], "3.12 and later": ["python3.12", "python3.13", "python3.14"]}


def main() -> int:
    """Fill dist/; a wheel that needs what manylinux does not promise is an error."""
    raw = DIST / "raw"
    shutil.rmtree(DIST, ignore_errors=True)
    run("build", "--sdist", "--outdir", DIST, ROOT)
    source = next(DIST.glob("*.tar.gz"))
    for kind, names in KINDS.items():
        python = next(filter(works, map(shutil.which, [sys.executable, *names] if kind == mine() else names)), None)
        if python is None:
            print(f"no Python {kind} on PATH: no wheel for it", file=sys.stderr)
            continue
        run("pip", "--python", python, "wheel", "--no-deps", "--wheel-dir", raw, source)
    for wheel in raw.iterdir():
        if sys.platform == "linux":
            run("auditwheel", "repair", "--wheel-dir", DIST, wheel)
        else:
            wheel.rename(DIST / wheel.name)
    shutil.rmtree(raw)
    for path in sorted(DIST.iterdir()):
        print(path.relative_to(ROOT), f"{path.stat().st_size / 1e6:.1f} MB")
    return 0


def mine() -> str:
    return "3.11" if sys.version_info < (3, 12) else "3.12 and later"


def works(python: str | None) -> bool:
    """Whether it is there and starts: a version manager's name for a Python may lead nowhere."""
    return python is not None and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0


def run(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", *words], check=True)


if __name__ == "__main__":
    sys.exit(main())
