"""Keep the map of docs/architecture.md true: every module with the first sentence it says about itself.

Without arguments the map is written; with ``--check`` a difference is printed and the exit status is 1.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "statepool"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- map: written by scripts/module_map.py -->", "<!-- end of map -->"
ROOMS = (
    "cli",
    "house",
    "dashboard",
    "train",
    "rollout",
    "sim",
    "serve",
    "engine",
    "kv",
    "sandbox",
    "tasks",
    "store",
    "vector",
    "cluster",
    "native",
    "web",
    "core",
    "bundled",
)


def first_sentence(text: str) -> str:
    """The first sentence of a docstring or comment, on one line."""
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return re.split(r"(?<=[.!])\s", paragraph, maxsplit=1)[0].rstrip(".:").replace("``", "`").replace("<", "&lt;")


def spoken(path: Path) -> str:
    """What a source file says about itself; empty if nothing."""
    text = path.read_text()
    if path.suffix == ".py":
        return first_sentence(ast.get_docstring(ast.parse(text)) or "")
    comment = re.match(r"(?://.*\n)+", text)
    return first_sentence(re.sub(r"^// ?", "", comment[0], flags=re.MULTILINE)) if comment else ""


def rows(room: str) -> list[tuple[str, str]]:
    """(file, sentence) of one room. A C++ source without a word of its own belongs to its header."""
    if room == "cli":
        files = [path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    else:
        files = [path for path in (PACKAGE / room).rglob("*") if path.suffix in {".py", ".cpp", ".h", ".inc"}]
    found = []
    for path in sorted(files, key=lambda path: (len(path.parts), path.as_posix())):
        sentence = spoken(path)
        name = path.relative_to(PACKAGE).as_posix()
        if sentence and (path.name != "__init__.py" or path.parent.parent != PACKAGE):
            found.append((name, sentence))
    return found


def chart() -> str:
    """The whole map as Markdown."""
    forgotten = {each.parent.name for each in PACKAGE.glob("*/__init__.py")} - set(ROOMS)
    if forgotten:
        raise SystemExit(f"scripts/module_map.py: ROOMS lacks {', '.join(sorted(forgotten))}")
    parts = []
    for room in ROOMS:
        listed = rows(room)
        if not listed:
            continue
        opening = PACKAGE / room / "__init__.py"
        about = spoken(opening) if opening.exists() else "What people touch: commands and the rooms behind them"
        parts.append(f"### {room}\n")
        parts.append(f"{about or 'What all rooms share'}.\n")
        parts.append("| module | what it is |\n| --- | --- |")
        parts += [f"| `{name}` | {sentence} |" for name, sentence in listed]
        parts.append("")
    return "\n".join(parts)


def page_with_map() -> str:
    """The page as it should be."""
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE.name} lacks the marks of the map")
    return f"{before}{BEGIN}\n\n{chart()}\n{END}{after}"


def main() -> int:
    """Write or check the map."""
    wanted = page_with_map()
    if wanted == PAGE.read_text():
        return 0
    if "--check" in sys.argv[1:]:
        print("docs/architecture.md: the map is older than the modules; run `make format`")
        return 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
