"""The size budget, and that it counts what it says it counts."""

import pytest


@pytest.fixture(scope="module")
def budget(script):
    return script("budget")


def test_budget_holds(budget):
    assert budget.breaches() == []


def test_docstrings_and_comments_are_free(budget, tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        '"""Doc\n\nmore\n"""\n\n# why\nX = 1\n\n\ndef f():\n    """Doc."""\n    return (\n        X,  # why\n    )\n'
    )
    assert budget.code_lines(path) == 5  # X, def, and the three lines of the return


def test_a_string_that_is_a_value_counts(budget, tmp_path):
    path = tmp_path / "a.py"
    path.write_text('X = """a\nb\n"""\n')
    assert budget.code_lines(path) == 3


def test_native_comments_are_free(budget, tmp_path):
    path = tmp_path / "a.cpp"
    path.write_text("// why\nint x;\n\nint y;  // unit\n")
    assert budget.code_lines(path) == 2
