"""What a user sees of a command that cannot run: one line, never a traceback."""

from __future__ import annotations

import sys
from argparse import Namespace

import pytest

from statepool.core.command import run


def test_a_missing_package_is_named(capsys) -> None:
    def needs(_: Namespace) -> int:
        import package_that_is_not_there  # noqa: F401

        return 0

    assert run("statepool", Namespace(command="serve", run=needs)) == 2
    said = capsys.readouterr().err
    assert said.startswith("statepool serve: needs the package package_that_is_not_there") and said.count("\n") == 1


def test_the_extra_that_has_a_missing_package_is_named(capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)

    def needs(_: Namespace) -> int:
        import torch  # noqa: F401

        return 0

    assert run("statepool", Namespace(command="train", run=needs)) == 2
    assert "needs the package torch: pip install 'statepool[train]'" in capsys.readouterr().err


def test_a_missing_module_of_our_own_is_a_fault() -> None:
    def needs(_: Namespace) -> int:
        import statepool.nowhere  # noqa: F401

        return 0

    with pytest.raises(ModuleNotFoundError):
        run("statepool", Namespace(command="serve", run=needs))
