"""``statepool replay`` against a real server: times as the client sees them, prefixes shared, wrong input named."""

import json
import subprocess
import sys

import pytest
from tests.e2e.conftest import PATIENCE

from statepool.sim.replay import Answer, summary, tokens_of
from statepool.sim.traces import Call


def replay(*arguments):
    command = [sys.executable, "-m", "statepool.cli", "replay", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 60 * i, "input_length": 1200 + i, "output_length": 20, "hash_ids": [0, 1 + i % 3, 100 + i]}
        for i in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_trace_is_played_on_time(running, random_model, trace, tmp_path):
    with running(random_model, cluster={"prefill": 1, "decode": 1, "pool_bytes": 16 << 20}) as server:
        played = replay(trace, "--url", server.url, "--scale", 0.25, "--out", tmp_path / "out.jsonl", "--json")
        assert played.returncode == 0, played.stderr
        found = json.loads(played.stdout)
        assert (found["calls"], found["answered"], found["failed"]) == (30, 1.0, 0.0)
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [len(line["gaps"]) for line in lines] == [4] * 30, "five tokens each"
        assert all(line["arrival"] >= 0.06 * line["number"] for line in lines)
        asked, hit = server.metrics(["prefix_query_tokens_total", "prefix_hit_tokens_total"])
        assert hit >= 0.5 * asked, "two of three blocks were there before"
        assert "1.0000" not in replay(trace, "--url", server.url).stderr
        too_long = replay(trace, "--url", server.url, "--scale", 20)
        assert too_long.returncode == 2
        assert "scale" in too_long.stderr
    away = replay(trace, "--url", server.url, "--scale", 0.25)
    assert away.returncode == 2
    assert "no server answers" in away.stderr


def test_equal_blocks_give_equal_tokens():
    a, b = Call(0.0, 1500, 10, (7, 8, 9)), Call(1.0, 1100, 10, (7, 8, 12))
    for scale in (1.0, 0.1):
        ours, theirs = tokens_of(a, 512, scale), tokens_of(b, 512, scale)
        shared = 2 * round(512 * scale)
        assert len(ours) == round(1500 * scale)
        assert ours[:shared] == theirs[:shared]
        assert ours[shared:] != theirs[shared : len(ours)]


def test_figures_of_answers():
    answers = [
        Answer(0, 0.0, 100, 10, 200, 1.0, (0.1,) * 9 + (1.0,)),
        Answer(1, 0.5, 300, 10, 200, 3.0, (0.1,) * 10),
        Answer(2, 1.0, 600, 10, 429, None, (), "busy"),
        Answer(3, 1.5, 1000, 10, 0, None, (), "gone"),
    ]
    found = summary(answers, ttft_s=2.0, tbt_s=1.5)
    assert answers[0].tbt == 1.0
    assert Answer(4, 0.0, 1, 20, 200, 1.0, (0.1,) * 17 + (0.5, 1.5)).tbt == 1.0, "two of nineteen"
    assert (found.answered, found.refused, found.failed, found.effective) == (0.5, 0.25, 0.25, 0.25)
    assert found.effective_tokens == 0.05
    assert found.tokens_s == pytest.approx(22 / 4.5)
