"""The figures of README and the front page are those of the rows they name, and a missed target is called missed."""

import json
import re

import pytest

TOLERANCE = 0.1  # a figure may be rounded, or stand for a row that was measured again; beyond that it is another figure
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?|\.\d+")


@pytest.fixture(scope="module")
def results(root):
    """Each row of ``bench/results`` by room and id."""
    found = [json.loads(path.read_text()) for path in (root / "bench" / "results").glob("*.json")]
    return {(room["room"], row["id"]): row for room in found for row in room["rows"]}


def tables(root):
    """Lines of tables whose last column names rows: the line, what is said of us, and the rows."""
    for page in ("README.md", "docs/index.md"):
        ours = []
        for line in (root / page).read_text().splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not line.startswith("|"):
                ours = []
            elif cells[-1] in ("row", "rows"):
                ours = [at for at, head in enumerate(cells) if head in ("statepool", "ratio", "ours")]
            elif ours and not line.startswith("| ---"):
                room, _, names = cells[-1].partition(" ")
                said = re.sub(r"\([^)]*missed[^)]*\)", "", " ".join(cells[at] for at in ours))  # targets
                yield line, said, [(room, name) for name in names.split(", ")]


def numbers(text):
    """Numbers of a text; one before `` k`` or `` M`` is meant a thousand or a million times."""
    for found in NUMBER.finditer(text):
        scale = {" k": 1e3, " M": 1e6}.get(text[found.end() : found.end() + 2], 1.0)
        yield float(found[0].replace(",", "")) * scale


def figures(row):
    """What may be said of a row: its value, as a share or in percent, what we did, and that against the peer."""
    own = next(numbers(row["own"]), None)
    yield from (row["value"], row["value"] * 100)
    if own is not None:
        yield own
    if own and row["peer_value"]:
        yield from (row["peer_value"] / own, own / row["peer_value"])


def test_every_figure_is_that_of_its_row(root, results):
    wrong = []
    for _, text, names in tables(root):
        said = list(numbers(text))
        for name in names:
            near = (abs(each - known) <= TOLERANCE * abs(known) for each in said for known in figures(results[name]))
            if not any(near):
                wrong.append((name, results[name]["value"], text))
    assert wrong == []


def test_a_missed_target_is_called_missed(root, results):
    wrong = [
        line
        for line, _, names in tables(root)
        if ("missed" in line) != any(not results[name]["pass"] for name in names)
    ]
    assert wrong == []


def test_the_front_page_has_all_ten(root):
    pages = [line for line in (root / "docs" / "index.md").read_text().splitlines() if line.startswith("| ")]
    start = next(i for i, line in enumerate(pages) if line.startswith("| system"))
    assert len([line for line in pages[start + 2 : start + 12] if line.count("|") == 6]) == 10


def test_a_wrong_figure_would_be_seen(results):
    row = results["serve", "H1b"]
    assert all(abs(each - known) > TOLERANCE * known for each in numbers("9.9 times") for known in figures(row))
