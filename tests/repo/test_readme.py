"""README and the docs name only commands that exist."""

import re
import subprocess

import pytest

from statepool import cli

COMMAND = re.compile(r"^(?:\$ )?((?:make|statepool)\b[^\n#|]*)", re.MULTILINE)


def commands(text):
    """Command lines inside fenced blocks of a shell, or of no language."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for found in COMMAND.findall(block) if language in ("", "sh", "bash", "console") else ():
            yield found.strip().rstrip("\\").split()


@pytest.fixture(scope="module")
def documented(root):
    pages = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]
    return [(page.name, line) for page in pages if page.exists() for line in commands(page.read_text())]


def test_readme_shows_the_two_commands(root):
    lines = [" ".join(line) for line in commands((root / "README.md").read_text())]
    assert "make serve" in lines
    assert "make test" in lines


def test_make_targets_exist(root, documented):
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (root / "Makefile").read_text(), re.MULTILINE))
    named = {(page, line[1]) for page, line in documented if line[0] == "make" and "=" not in line[1]}
    assert {(page, target) for page, target in named if target not in targets} == set()


def test_cli_commands_and_their_flags_exist(documented, capsys):
    trees = {name for name, (_, keeps_name, _) in cli._ROOMS.items() if not keeps_name}
    used = {}
    for _, line in documented:
        if line[0] == "statepool" and len(line) > 1 and not line[1].startswith("-"):
            name = tuple(line[1:3]) if line[1] in trees and len(line) > 2 else (line[1],)
            if name == ("sandbox", "template"):  # a tree below a tree
                name = tuple(line[1:4])
            used.setdefault(name, set()).update(re.findall(r"(--[a-z][a-z-]*)", " ".join(line[2:])))
    assert {("serve",), ("chat",), ("generate",), ("doctor",), ("store", "serve"), ("vector", "build")} <= set(used)
    for command, flags in used.items():
        if command[0] in ("train", "bench") or "|" in command[-1]:
            continue  # their flags are their own trees; status|dump names several commands
        with pytest.raises(SystemExit) as end:
            cli.main([*command, "--help"])
        assert end.value.code in (0, None), command
        assert flags <= set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)), command


def test_links_between_pages_lead_somewhere(root):
    for page in [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_ci_script_is_valid_shell(root):
    for path in (root / ".ci" / "run", root / "scripts" / "browser.sh"):
        subprocess.run(["bash", "-n", path], check=True)
        assert path.stat().st_mode & 0o111, f"{path.name} must be executable"
