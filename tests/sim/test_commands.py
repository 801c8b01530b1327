"""`statepool simulate` and `statepool plan` as a user runs them."""

import json
import os
import pty
import random
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from statepool import cli
from statepool.serve.snapshot import SLO
from statepool.sim.plan import fastest
from statepool.sim.report import report


@pytest.fixture
def small(trace_file):
    """Two hundred requests in a minute, rounded to 3 s, a third of them second turns."""
    draw = random.Random(0)
    rows, fresh, past = [], 1, []
    for at in sorted(draw.uniform(0, 60) for _ in range(200)):
        before = draw.choice(past) if past and draw.random() < 0.4 else [0]
        ids = [*before, *range(fresh, fresh + draw.randrange(1, 20))]
        fresh = max(fresh, max(ids) + 1)
        past.append(ids)
        tokens = len(ids) * 512
        rows.append(
            {
                "timestamp": int(at) // 3 * 3000,
                "input_length": tokens,
                "output_length": draw.randrange(1, 300),
                "hash_ids": ids,
            }
        )
    return trace_file(*rows)


def test_a_run_is_printed_written_and_drawn(small, tmp_path, capsys):
    out, plot = tmp_path / "o.jsonl", tmp_path / "p.svg"
    options = ["--cluster", "2P+1D", "--json", "--out", str(out), "--plot", str(plot), "--against", "foresight"]
    assert cli.main(["simulate", str(small), *options]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    raw, jittered = map(json.loads, printed)
    assert (raw["timestamps"], jittered["timestamps"]) == ("raw", "jittered")
    assert raw["requests"] == 200
    assert raw["effective"] > 0.9
    assert len(raw["refused_by_length"]) == 10
    for name in ("raw", "jittered"):
        lines = [json.loads(line) for line in (tmp_path / f"o-{name}.jsonl").read_text().splitlines()]
        assert [line["id"] for line in lines] == list(range(200))
        good = [line for line in lines if line["status"] == "done" and line["ttft"] <= 30 and line["tbt"] <= 0.1]
        assert len(good) / 200 == pytest.approx(raw["effective"] if name == "raw" else jittered["effective"])
        picture = ET.fromstring((tmp_path / f"p-{name}.svg").read_text())
        assert len(picture.findall("{http://www.w3.org/2000/svg}polyline")) == 4


def test_overload_names_who_is_refused(small, capsys):
    assert cli.main(["simulate", str(small), "--cluster", "1P+1D", "--speed", "8", "--policy", "global"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("raw: 200 requests")
    assert "jittered: 200 requests" in text
    shares = text.split("refused, tenths")[1].split("(")[0].split()
    assert float(shares[-1].rstrip("%")) > float(shares[0].rstrip("%"))


def test_a_bar_runs_on_a_terminal(small):
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "statepool.cli", "simulate", str(small), "--timestamps", "raw"]
    done = subprocess.run(command, stderr=terminal, stdout=subprocess.PIPE, text=True, timeout=120)
    os.close(terminal)
    shown = os.read(screen, 1 << 16).decode()
    os.close(screen)
    assert done.returncode == 0
    assert "[########################################] 200/200" in shown
    assert "#" not in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cluster", "8+8"], "write it like 8P+8D"),
        (["--cluster", "0P+8D"], "prefill is 0"),
        (["--policy", "best"], "policy is 'best'"),
        (["--admission", "x"], "admission is 'x'"),
        (["--eviction", "x"], "eviction is 'x'"),
        (["--node", "x"], "node is 'x'"),
        (["--speed", "0"], "speed is 0"),
        (["--slo", "30"], "write it like ttft=30,tbt=0.1"),
        (["--slo", "ttft=1.2.3,tbt=1"], "write it like ttft=30,tbt=0.1"),
        (["--block", "16"], "look like blocks of 512 tokens"),
        (["--block", "0"], "block is 0"),
    ],
)
def test_what_a_user_can_repair(small, options, message, capsys):
    assert cli.main(["simulate", str(small), *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_a_plan_finds_the_split_that_bears_most(small, capsys):
    assert cli.main(["plan", str(small), "--nodes", "3", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert {(each["prefill"], each["decode"]) for each in (first, second)} == {(1, 2), (2, 1)}
    assert first["speed"] > second["speed"] > 0
    assert first["prefill"] == 2, "prompts are long and answers short"
    assert cli.main(["plan", str(small), "--budget", "50", "--price", "20"]) == 0
    assert "1P+1D  serves the trace at x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either --nodes or --budget"),
        (["--nodes", "1"], "cannot be split"),
        (["--budget", "30"], "cannot be split"),
        (["--budget", "30", "--price", "0"], "price is 0"),
        (["--nodes", "2", "--share", "2"], "share is 2"),
    ],
)
def test_plans_that_cannot_be(small, options, message, capsys):
    assert cli.main(["plan", str(small), *options]) == 2
    assert message in capsys.readouterr().err


def test_bisection_finds_the_edge():
    assert fastest(lambda speed: speed < 3.3, 0.1, 50, 0.01) == pytest.approx(3.3, rel=0.01)
    assert fastest(lambda speed: speed < 0.01, 0.1, 50) == 0
    assert fastest(lambda speed: True, 0.1, 50) == 50


def test_nothing_that_ran_is_no_number():
    from statepool.serve.snapshot import Ask, Decision
    from statepool.sim.nodes import Job
    from statepool.sim.traces import Call

    job = Job(Call(0.0, 10, 1), Ask(0, 0.0, 10), Decision(0, 0, 0, refused="full"), 0.0)
    job.status = "refused"
    figures = report([job], [], SLO(), 512)
    assert (figures.effective, figures.refused, figures.reuse_bound) == (0.0, 1, 0.0)
    assert figures.ttft_mean_s != figures.ttft_mean_s
