"""The command line, as a user runs it: processes, files, a picture, and one line for what can be repaired."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from statepool.cli import main

CONFIG = """
model: tiny
kv_bytes: 1MiB
max_seqs: 8
engines: 2
task: echo,sums
problems: 3
size: 2
max_tokens: 48
chunk: 16
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return path


def test_run_writes_responses_a_trace_a_picture_and_events(config, tmp_path, capsys):
    files = {name: tmp_path / name for name in ("out", "trace", "plot", "events")}
    flags = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    assert main(["rollout", "run", str(config), "--json", *flags]) == 0
    figures = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in files["out"].read_text().splitlines()]
    assert figures["responses"] == len(lines) == 6
    assert figures["tokens"] == sum(len(line["tokens"]) for line in lines)
    assert figures["preemptions"] == figures["refilled"] == 0
    assert {line["score"] for line in lines} <= {0.0, 1.0}
    traces = [json.loads(line) for line in files["trace"].read_text().splitlines()]
    assert [trace["out_len"] for trace in traces] == [len(line["tokens"]) for line in lines]
    assert all(trace["chunks"][-1][4] == trace["out_len"] for trace in traces)
    assert ET.parse(files["plot"]).getroot().tag.endswith("svg")

    again = tmp_path / "again"
    assert main(["rollout", "run", str(config), "--policy", "verl_group", "--out", str(again)]) == 0
    assert again.read_bytes() == files["out"].read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("policy: fastest", "policy must be one of"),
        ("size: 0", "size must be at least 1"),
        ("prompts: nowhere.jsonl", "either prompts"),
        ("max_tokens: 4000", "lower max_tokens"),
        ("polcy: auto", "did you mean 'policy'"),
    ],
)
def test_what_a_user_can_repair_is_one_line(config, change, says, capsys):
    key = change.partition(":")[0]
    kept = [line for line in CONFIG.splitlines() if not line.startswith(key)]
    config.write_text("\n".join([*kept, change]))
    assert main(["rollout", "run", str(config)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert says in error[-1]
