"""Hold the size budget: no file above 500 lines, each room within its lines of code.

Prints each breach and exits 1 if there is one. Lines of code are lines that hold more than a comment or a
docstring; a file's 500 lines count everything, since that is what a reader scrolls through.
"""

from __future__ import annotations

import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES = 500
ROOMS = {
    ("engine", "kv"): 6150,
    ("kv/pool",): 1500,
    ("native",): 4500,
    ("engine/attention", "native/sparse"): 5000,
    ("engine/attention/remote",): 1500,
    ("engine/slicing",): 900,
    ("store", "native/store"): 11110,
    ("vector", "native/graph"): 9000,
    ("sandbox", "sandbox/inside", "native/sandbox"): 7920,
    ("tasks/sequences", "native/sequences"): 3500,
    ("rollout", "native/suffix"): 5500,
    ("train",): 4500,
    ("tasks/topology", "native/topology"): 4200,
}
COUNTED = {".py", ".cpp", ".h", ".inc", ".js", ".css", ".html"}


def tracked() -> list[Path]:
    """Files git knows or would add, that count against the budget."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    paths = [ROOT / name for name in listing.stdout.splitlines()]
    return [path for path in paths if path.suffix in COUNTED and path.is_file()]


def code_lines(path: Path) -> int:
    """Lines of `path` with code on them; docstrings and comments are free."""
    if path.suffix != ".py":
        text = (line.strip() for line in path.read_text().splitlines())
        return sum(1 for line in text if line and not line.startswith(("//", "/*", "*")))
    lines: set[int] = set()
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}
    previous = tokenize.NEWLINE
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            docstring = token.type == tokenize.STRING and previous in (tokenize.NEWLINE, tokenize.INDENT, tokenize.NL)
            if token.type not in skip and not docstring and token.type != tokenize.ENDMARKER:
                lines.update(range(token.start[0], token.end[0] + 1))
            if token.type not in (tokenize.COMMENT, tokenize.NL):
                previous = token.type if token.type != tokenize.DEDENT else tokenize.NEWLINE
            if token.type == tokenize.ENCODING:
                previous = tokenize.NEWLINE
    return len(lines)


def breaches() -> list[str]:
    """One sentence for each rule that does not hold."""
    found = []
    for path in tracked():
        count = len(path.read_text().splitlines())
        if count > FILE_LINES:
            found.append(f"{path.relative_to(ROOT)} has {count} lines; split it (at most {FILE_LINES})")
    for rooms, most in ROOMS.items():
        total = room_lines(rooms)
        if total > most:
            found.append(f"{' and '.join(rooms)} hold {total} lines of code; at most {most}")
    return found


def room_lines(rooms: tuple[str, ...]) -> int:
    """Lines of code in these rooms of the package; a room inside another one counts for itself."""
    package = ROOT / "src" / "statepool"
    known = {package / room for key in ROOMS for room in key}
    folders = {package / room for room in rooms}
    owners = ((path, next((folder for folder in path.parents if folder in known), None)) for path in tracked())
    return sum(code_lines(path) for path, owner in owners if owner in folders)


def summary() -> str:
    """How much of each budget is used."""
    parts = [f"{' and '.join(rooms)} {room_lines(rooms)} of {most}" for rooms, most in ROOMS.items()]
    return f"size budget holds: {', '.join(parts)} lines"


if __name__ == "__main__":
    found = breaches()
    print("\n".join(found) or summary())
    sys.exit(bool(found))
