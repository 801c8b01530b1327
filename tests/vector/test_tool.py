"""The index as an agent's tool."""

from __future__ import annotations

import itertools

import jsonschema
import numpy as np
import pytest

from statepool.core.errors import InvalidRequest
from statepool.vector import FilterError, Index, LiveIndex, RetrievalTool

PASSAGES = {
    7: "how to compile the kernel",
    11: "bread with yeast and salt",
    13: "kernel modules and drivers",
    17: "a cake with butter",
}


def embed(text: str) -> np.ndarray:
    """Counts of letter pairs."""
    vector = np.full(26 * 26, 1e-3, np.float32)
    letters = [ord(c) - 97 for c in text.lower() if "a" <= c <= "z"]
    for a, b in itertools.pairwise(letters):
        vector[a * 26 + b] += 1
    return vector


@pytest.fixture
def tool() -> RetrievalTool:
    index = Index(26 * 26, R=16, build_window=16)
    index.build(np.stack([embed(text) for text in PASSAGES.values()]), ids=np.array(list(PASSAGES)))
    return RetrievalTool(index, embed, PASSAGES)


def test_passages_come_nearest_first(tool: RetrievalTool) -> None:
    found = tool(query="kernel compile", k=2)
    assert [one["id"] for one in found] == [7, 13]
    assert found[0]["text"] == PASSAGES[7]
    assert found[0]["distance"] < found[1]["distance"]
    assert len(tool(query="cake", k=50)) == 4


def test_the_schema_admits_what_the_call_admits(tool: RetrievalTool) -> None:
    parameters = tool.schema["function"]["parameters"]
    jsonschema.Draft202012Validator.check_schema(parameters)
    for arguments, fine in (
        ({"query": "a b"}, True),
        ({"query": "x", "k": 0}, False),
        ({"query": "x", "k": 51}, False),
    ):
        assert jsonschema.Draft202012Validator(parameters).is_valid(arguments) == fine
        if fine:
            tool(**arguments)
        else:
            with pytest.raises(InvalidRequest):
                tool(**arguments)
    with pytest.raises(InvalidRequest, match="must be text"):
        tool(" ")


def test_a_filter_among_passages_that_come_and_go() -> None:
    index = LiveIndex(26 * 26, R=16, build_window=16, columns={"topic": "str"})
    topics = ["computers", "food", "computers", "food"]
    index.add(np.stack([embed(text) for text in PASSAGES.values()]), list(PASSAGES), columns={"topic": topics})
    with index.snapshot() as frozen:
        tool, still = RetrievalTool(index, embed, PASSAGES), RetrievalTool(frozen, embed, PASSAGES)
        food = {"topic": "food"}
        parameters = tool.schema["function"]["parameters"]
        assert "topic (str)" in parameters["properties"]["filter"]["description"]
        jsonschema.Draft202012Validator(parameters).validate({"query": "kernel", "filter": food})
        assert {one["id"] for one in tool("kernel", filter=food)} == {11, 17}
        index.delete([11])
        assert [one["id"] for one in tool("kernel", filter=food)] == [17]
        assert {one["id"] for one in still("kernel", filter=food)} == {11, 17}
        with pytest.raises(FilterError, match="no column 'subject'"):
            tool("kernel", filter={"subject": "food"})
