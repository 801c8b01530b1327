"""The commands of README and the docs do what they are printed for, one page after the other in a folder of its own.

Left out: what goes on until it is stopped, what takes minutes, and what needs a second host or files of others; their
flags are held to the commands in ``test_readme``. The time of a search is cut.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    "README",
    *(f"docs/{name}" for name in ("engine", "house", "lamina", "sandbox", "sequences", "topology", "vector")),
]
LEFT_OUT = re.compile(
    r"statepool (serve|up|chat|train|bench|attention|calibrate|replay"
    r"|sandbox (serve|mcp|template|bench)|vector (serve|convert)|seq search .*--url)\b"
)

pytestmark = pytest.mark.slow


def commands(page):
    """Lines of a page that call statepool."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / f"{page}.md").read_text(), re.DOTALL | re.M):
        for line in block.splitlines() if language in ("", "sh") else ():
            if line.startswith("statepool ") and not line.endswith("&") and not LEFT_OUT.match(line):
                yield line


@pytest.fixture
def folder(tmp_path):
    """Where a user of the pages would stand: the files that the commands read."""
    rng = np.random.default_rng(0)
    for name, count in (("rows", 400), ("queries", 5), ("more", 20)):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((count, 16), np.float32))
    for name in ("prompts", "questions", "in"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "one, two,"}\n')
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_commands_run(page, folder):
    ran = 0
    for line in commands(page):
        short = re.sub(r"--time \d+", "--time 2", line.removeprefix("statepool"))
        done = subprocess.run(
            ["sh", "-c", f"{shlex.quote(sys.executable)} -m statepool.cli {short}"],
            cwd=folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HOME": str(folder)},  # what is kept is kept there
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        ran += 1
    assert ran
