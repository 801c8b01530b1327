"""What a user sees of a command that cannot run: one line, never a traceback."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from itertools import chain, permutations

import pytest

from statepool.core.command import adder, run


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


def test_options_stand_before_between_and_after_the_arguments() -> None:
    tree = ArgumentParser()
    use = adder(tree)("exec", "run a line", lambda _: 0)
    use.add_argument("id")
    use.add_argument("line", nargs="?")
    use.add_argument("--shell", action="store_true")
    use.add_argument("--url", default="here")
    for parts in permutations((["--shell"], ["--url", "there"], ["box", "echo 1"])):
        found = tree.parse_args(["exec", *chain(*parts)])
        assert (found.id, found.line, found.shell, found.url) == ("box", "echo 1", True, "there")
    between = tree.parse_args(["exec", "box", "--shell", "echo 1", "--url", "there"])
    assert (between.id, between.line, between.shell, between.url) == ("box", "echo 1", True, "there")
    assert tree.parse_args(["exec", "box", "--shell"]).line is None
    assert tree.parse_args(["exec", "box", "--", "--shell"]).line == "--shell"


@pytest.mark.parametrize(
    ("words", "named"), [("exec", "id"), ("exec box one two", "two"), ("exec box --sheet", "--sheet")]
)
def test_a_missing_a_surplus_or_an_unknown_word_is_an_error(words, named, capsys) -> None:
    tree = ArgumentParser()
    use = adder(tree)("exec", "run a line", lambda _: 0)
    use.add_argument("id")
    use.add_argument("line", nargs="?")
    with pytest.raises(SystemExit):
        tree.parse_args(words.split())
    assert named in capsys.readouterr().err.splitlines()[-1]
