"""What pages read: growing files, shared figures, what attention read for an answer."""

import asyncio
import json

import pytest

from statepool.core.errors import Unavailable
from statepool.dashboard.live import Shared
from statepool.dashboard.tail import Tail
from statepool.dashboard.views.attention import AttentionTrace


def test_a_growing_file_is_parsed_once_and_a_new_one_from_its_start(tmp_path):
    path = tmp_path / "lines.jsonl"
    tail = Tail(path)
    with pytest.raises(FileNotFoundError):
        tail.look()
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert tail.look() == (True, [{"a": 1}, {"a": 2}])
    with path.open("a") as file:
        file.write(": 3}\n")
    assert tail.look() == (False, [{"a": 3}])
    path.write_text('{"b": 1}\n')  # shorter: it began anew
    assert tail.look() == (True, [{"b": 1}])


def test_lines_are_chosen_by_their_first_bytes(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"kind":"one"}\n{"kind":"two"}\n{"kind":"six"}\n')
    assert Tail(path, b'"one"', b'"six"').look()[1] == [{"kind": "one"}, {"kind": "six"}]


async def test_many_watchers_share_one_look():
    looks, now = [], [0.0]

    async def look():
        looks.append(now[0])
        return {"n": len(looks)}

    shared = Shared(look, clock=lambda: now[0])
    assert set(await asyncio.gather(*(shared.text() for _ in range(5)))) == {'{"state":"live","n":1}'}
    now[0] = 1.5
    assert json.loads(await shared.text())["n"] == 2
    assert looks == [0.0, 1.5]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Unavailable("nobody answers"), "nobody answers"),
        (FileNotFoundError(2, "gone", "a.jsonl"), "a.jsonl is not there yet"),
        (KeyError("at"), "another form"),
    ],
)
async def test_a_room_that_is_gone_is_away(error, says):
    async def look():
        raise error

    found = json.loads(await Shared(look).text())
    assert found["state"] == "away"
    assert says in found["why"]


async def test_a_stream_ends_when_the_server_does():
    async def look():
        return {}

    ending = iter([False, True])
    assert [event async for event in Shared(look).events(lambda: next(ending))] == ['data: {"state":"live"}\n\n']


def test_shares_of_clusters_by_token(tmp_path):
    path = tmp_path / "trace.jsonl"
    lines = [
        {"request": "chatcmpl-a-0", "layer": layer, "position": at, "clusters": 4, "read": read, "estimated": [2, 2]}
        for at, read in ((10, [[0], [1]]), (11, [[0, 1], [0, 1]]))
        for layer in (0, 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    trace = AttentionTrace("wave", str(path))
    found = trace.of({"request": "chatcmpl-a"})
    assert (found["kind"], found["read"], found["estimated"]) == ("wave", [0.25, 0.5], [0.5, 0.5])
    assert trace.of({"request": "other"})["read"] == []
    assert not AttentionTrace("full", None).of({"request": "x"})["traced"]
