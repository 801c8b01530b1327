"""pyproject.toml names what the code imports, and constraints.txt pins what pyproject.toml names."""

import ast
import importlib.metadata
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

# These depend on the machine; see scripts/setup.py and docs/architecture.md.
UNPINNED = {"torch", "triton"}
ELSEWHERE = {"mooncake": "mooncake-transfer-engine-non-cuda"}
"""Distributions of modules that may be missing and are named otherwise."""


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins(root):
    lines = (line.partition("#")[0].strip() for line in (root / "constraints.txt").read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


def requirements(project):
    texts = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        texts += extra
    return [Requirement(text) for text in texts]


def test_pins_cover_and_satisfy_the_ranges(project, pins):
    for requirement in requirements(project):
        if requirement.name in UNPINNED:
            assert requirement.name not in pins
            continue
        assert requirement.name in pins, f"pin {requirement.name} in constraints.txt"
        assert requirement.specifier.contains(Version(pins[requirement.name])), requirement


def test_constraints_are_exact_and_sorted(root):
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == sorted(lines)
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9._-]+==[\w.!+]+", line)] == []


def test_build_needs_no_torch(root):
    build = tomllib.loads((root / "pyproject.toml").read_text())["build-system"]["requires"]
    assert not [text for text in build if Requirement(text).name in UNPINNED]


def test_every_import_is_declared(root, project):
    declared = {re.sub(r"[-_.]+", "-", item.name).lower() for item in requirements(project)}
    distributions = importlib.metadata.packages_distributions()
    undeclared = {}
    for path in (root / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            for name in {item.partition(".")[0] for item in names} - set(sys.stdlib_module_names) - {"statepool"}:
                known = distributions.get(name) or [ELSEWHERE.get(name, name)]
                owners = {re.sub(r"[-_.]+", "-", owner).lower() for owner in known}
                if not owners & declared:
                    undeclared[name] = path.name
    assert undeclared == {}
