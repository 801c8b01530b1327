"""The floors of docs/architecture.md hold, and the tool that says so would notice a breach."""

import re
import shutil
import subprocess
import sys
import tomllib

# An editable install puts a finder in front of sys.path; without it the package of `folder` is the one that is read.
LINT = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "Scikit" not in type(finder).__name__]
sys.path.insert(0, "src")
from importlinter.cli import lint_imports
sys.exit(lint_imports(config_filename="pyproject.toml", no_cache=True))
"""


def lint(folder):
    return subprocess.run([sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True)


def test_contracts_hold(root):
    done = lint(root)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_breach_is_found(root, tmp_path):
    shutil.copytree(
        root / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.so", "*.safetensors", "__pycache__")
    )
    shutil.copy(root / "pyproject.toml", tmp_path)
    assert lint(tmp_path).returncode == 0
    keys = tmp_path / "src" / "statepool" / "kv" / "keys.py"
    keys.write_text(keys.read_text() + "\nfrom statepool.engine import request\n")
    core = tmp_path / "src" / "statepool" / "core" / "errors.py"
    core.write_text(core.read_text() + "\nimport torch\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert "statepool.kv is not allowed to import statepool.engine" in done.stdout
    assert "statepool.core is not allowed to import torch" in done.stdout


def test_the_drawing_shows_every_room_on_its_floor(root):
    drawing = (root / "docs" / "img" / "house.svg").read_text()
    heights = {name: int(y) for y, name in re.findall(r'class="name" x="[\d.]+" y="(\d+)"[^>]*>(\w+)<', drawing)}
    del heights["statepool"]  # the roof
    package = root / "src" / "statepool"
    assert set(heights) == {path.parent.name for path in package.glob("*/__init__.py")} | {"cli"}
    linter = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    (floors,) = [each for each in linter["contracts"] if each["id"] == "floors"]
    drawn = [{heights[name] for name in re.findall(r"\w+", layer) if name in heights} for layer in floors["layers"]]
    assert all(len(floor) == 1 for floor in drawn)
    ordered = [floor.pop() for floor in drawn]
    assert ordered == sorted(ordered)
