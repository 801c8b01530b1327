"""Build the source distribution and a wheel of this Python; on Linux the wheel gets the manylinux tag it earns."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"


def main() -> int:
    """Fill dist/; a wheel that needs what manylinux does not promise is an error."""
    raw = DIST / "raw"
    shutil.rmtree(DIST, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "build", "--outdir", raw, ROOT], check=True)
    for path in raw.iterdir():
        if path.suffix == ".whl" and sys.platform == "linux":
            subprocess.run([sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", DIST, path], check=True)
        else:
            path.rename(DIST / path.name)
    shutil.rmtree(raw)
    for path in sorted(DIST.iterdir()):
        print(path.relative_to(ROOT), f"{path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
