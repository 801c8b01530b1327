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
    assert (
        main(
            [
                "rollout",
                "run",
                str(config),
                "--policy",
                "verl_group",
                "--engines",
                "1",
                "--drafts",
                "off",
                "--out",
                str(again),
            ]
        )
        == 0
    )
    assert again.read_bytes() == files["out"].read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("policy: fastest", "policy must be one of"),
        ("size: 0", "size must be at least 1"),
        ("prompts: nowhere.jsonl", "either prompts"),
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


def test_a_recorded_run_is_decided_again_and_simulated(config, tmp_path, capsys):
    events, trace, profile = (tmp_path / name for name in ("events", "trace", "profile"))
    assert main(["rollout", "run", str(config), "--events", str(events), "--trace", str(trace)]) == 0
    assert main(["rollout", "replay", str(events)]) == 0
    assert "all as recorded" in capsys.readouterr().out
    lines = events.read_text().splitlines()
    changed = lines[1].replace('"is":"Dispatch","job":0', '"is":"Dispatch","job":1', 1)
    assert changed != lines[1]
    events.write_text("\n".join([lines[0], changed, *lines[2:]]))
    assert main(["rollout", "replay", str(events)]) == 2
    assert "line 2" in capsys.readouterr().err

    assert main(["rollout", "calibrate", str(config), "--out", str(profile)]) == 0
    measured = json.loads(profile.read_text())
    assert measured["base"] > 0 and measured["context"] >= 0
    asked = ["rollout", "sim", "--trace", str(trace), "--profile", str(profile), "--kv", "1024", "--chunk", "16"]
    capsys.readouterr()
    for policy in ("auto", "verl_group", "lrpt_oracle"):
        assert main([*asked, "--policy", policy, "--json", "--plot", str(tmp_path / "plot")]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert figures["tokens"] == sum(json.loads(line)["out_len"] for line in trace.read_text().splitlines())
    assert main([*asked, "--events", str(events)]) == 0
    assert main(["rollout", "replay", str(events)]) == 0
    assert main([*asked[:4], "--policy", "divided_rr"]) == 2
    assert "profile" in capsys.readouterr().err


@pytest.mark.slow
def test_bench_compares_policies_on_the_same_answers(config, capsys):
    arguments = [
        "rollout",
        "bench",
        str(config),
        "--against",
        "verl_group,verl_request/self",
        "--rounds",
        "1",
        "--json",
    ]
    assert main(arguments) == 0
    arms = json.loads(capsys.readouterr().out)
    assert [arm["name"] for arm in arms] == ["auto/group", "verl_group", "verl_request/self"]
    assert len({arm["tokens"] for arm in arms}) == 1


def test_prompts_come_from_a_file_too(tmp_path, capsys):
    prompts, config, out = (tmp_path / name for name in ("prompts.jsonl", "run.yaml", "out"))
    lines = [
        '{"id": "a", "messages": [{"role": "user", "content": "Hello"}]}',
        '{"prompt": "Let"}',
        '{"prompt_token_ids": [5, 6]}',
    ]
    prompts.write_text("\n".join(lines))
    config.write_text(f"prompts: {prompts}\nengines: 1\nsize: 2\nmax_tokens: 4\nkv_bytes: 1MiB\ndrafts: 'off'\n")
    assert main(["rollout", "run", str(config), "--out", str(out)]) == 0
    assert [json.loads(line)["group"] for line in out.read_text().splitlines()] == ["a", "a", "2", "2", "3", "3"]
    prompts.write_text('{"text": 1}\n')
    assert main(["rollout", "run", str(config)]) == 2
    assert "prompts.jsonl:1" in capsys.readouterr().err
