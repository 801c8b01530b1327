"""Every public name has a docstring, and what a module exports exists."""

import ast
import importlib
import importlib.util

import pytest

import statepool


def public(node, name=""):
    """Names of public definitions below ``node`` that lack a docstring."""
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            decorators = {ast.unparse(item) for item in child.decorator_list}
            if "overload" not in decorators and "override" not in decorators and ast.get_docstring(child) is None:
                yield f"{name}{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{name}{child.name}.")


def test_docstrings(root):
    missing = []
    for path in sorted((root / "src").rglob("*.py")):
        tree = ast.parse(path.read_text())
        where = path.relative_to(root / "src")
        if ast.get_docstring(tree) is None and path.read_text().strip():
            missing.append(f"{where}: the module")
        missing += [f"{where}: {name}" for name in public(tree)]
    assert missing == []


def test_lazy_names_of_the_package():
    assert sorted(statepool.__all__) == ["LLM", "Request", "SamplingParams", "__version__"]
    for name in statepool.__all__:
        assert getattr(statepool, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        statepool.Nothing  # noqa: B018


def test_exports_exist(root):
    for path in sorted((root / "src").rglob("*.py")):
        parts = path.relative_to(root / "src").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        if any(f"import {extra}" in text and importlib.util.find_spec(extra) is None for extra in ("torch", "ray")):
            continue
        if "__all__" in text and not name.startswith("statepool.train"):
            module = importlib.import_module(name)
            assert [item for item in module.__all__ if not hasattr(module, item)] == [], name
