"""A calibration finds the costs that a server has: against one whose times are computed from known costs."""

import json
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from statepool import cli
from statepool.core.errors import InvalidConfig, Unavailable
from statepool.serve.costs import NodeCosts
from statepool.serve.policies import conductor
from statepool.serve.snapshot import SLO
from statepool.sim import calibrate as room
from statepool.sim.cluster import Cluster, Shape
from statepool.sim.replay import Answer
from statepool.sim.traces import Call

BASE, EACH, HELD = 0.004, 0.0005, 2e-7
PREFILL = (0.01, 5e-5, 3e-9)
WAIT, PER_TOKEN = 0.002, 1e-6


@pytest.fixture
def served(monkeypatch):
    """A server of known costs: a request takes exactly what they say. ``batch`` answers are written side by side."""
    seen = {}

    def ask(number, prompt, output, body, url, api_key, started=0.0):
        behind = served.shape.get("step_tokens") and served.batch == 4 and prompt <= 170
        if behind and output == 1:  # it shares a step with two others, behind a prompt that was there at 0
            c0, c1, c2 = PREFILL
            step = c0 + c1 * 3 * prompt + c2 * 3 * prompt**2
            return Answer(number, 1e-6, prompt, 1, 200, served.ahead + step - 1e-6, ())
        tokens = tuple(json.loads(body)["prompt"])
        cached = max((_common(tokens, other) for other in list(seen)), default=0) // 16 * 16
        seen[tokens] = True
        fresh = len(tokens) - min(cached, len(tokens) - 1)
        c0, c1, c2 = PREFILL
        steps = -(-fresh // served.shape["step_tokens"]) if served.shape.get("step_tokens") else 1
        ttft = served.reply + c0 * steps + c1 * fresh + c2 * (len(tokens) ** 2 - (len(tokens) - fresh) ** 2)
        served.ahead = ttft
        # New prompts of a crowd are computed one after the other: each answer is over before the next begins.
        alone = served.batch > 1 and fresh > 16 and output > 1
        served.computed += 10.0 * alone
        beside = 1 if alone else served.batch
        step = BASE + EACH * beside + HELD * beside * (prompt + output // 2)
        gaps = [step + WAIT + PER_TOKEN * prompt, *[step] * (output - 2)] if output > 1 else []
        ttft = served.slower * (ttft + served.computed * alone)
        return Answer(number, 0.0, prompt, output, 200, ttft, tuple(served.slower * gap for gap in gaps))

    def crowd(size):
        served.batch = size
        return pool(size)

    class served:
        batch, reply, ahead, computed, slower = 1, 0.0, 0.0, 0.0, 1.0
        shape: ClassVar = {"engines": [{"kv_blocks_total": 4096}]}

    pool = room.ThreadPoolExecutor
    monkeypatch.setattr(room, "ThreadPoolExecutor", crowd)
    monkeypatch.setattr(room, "ask", ask)
    monkeypatch.setattr(room, "model_of", lambda url, key: ("known", 4096))
    monkeypatch.setattr(room, "get_json", lambda *_: served.shape)
    return served


def _common(one, other):
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def test_known_costs_are_found(served):
    shown = []
    found = room.calibrate("http://nowhere", longest=1024, passed=lambda *done: shown.append(done))
    assert found.costs.prefill == pytest.approx(PREFILL, rel=1e-6)
    assert found.costs.sizes == (1, 2, 4, 8, 16, 4096)
    assert found.costs.linear_us == pytest.approx([1e6 * (BASE + EACH * size) for size in found.costs.sizes], rel=1e-6)
    assert found.costs.token_read_s == pytest.approx(HELD, rel=1e-6)
    assert found.costs.handoff_s(0) == pytest.approx(WAIT, rel=1e-6)
    assert found.costs.handoff_s(500) == pytest.approx(WAIT + 500 * PER_TOKEN, rel=1e-6)
    assert found.costs.vram_tokens == 65536
    assert max(found.prefill_error, found.step_error) < 1e-6
    assert shown == [(i + 1, shown[0][1]) for i in range(shown[0][1])]


def test_an_engine_that_computes_in_steps_is_told_from_a_requests_own_way(served):
    served.shape |= {"step_tokens": 512}
    served.reply = 0.03
    shown = []
    found = room.calibrate("http://nowhere", longest=1024, passed=lambda *done: shown.append(done))
    assert found.costs.prefill == pytest.approx(PREFILL, rel=1e-6)
    assert (found.costs.reply_s, found.costs.step_tokens) == (pytest.approx(0.03), 512)
    assert found.prefill_error < 1e-6
    assert shown == [(i + 1, shown[0][1]) for i in range(shown[0][1])]
    alone = found.costs.prefill_s(1024) + found.costs.reply_s
    assert alone == pytest.approx(0.03 + 2 * PREFILL[0] + PREFILL[1] * 1024 + PREFILL[2] * 1024**2)


def test_no_cost_of_an_engine_is_below_zero():
    prefills = [(n, 0, 0.001 * n - 0.01) for n in (32, 64, 128)]
    reply_s, prefill, error = room.fit_engine(prefills, [(32, 0.08), (64, 0.18)], 512)
    assert min(reply_s, *prefill) == 0.0
    assert error < 0.3


def test_a_server_that_was_calibrated_before_has_no_prompt_of_the_next_one(served):
    first, second = (room.calibrate("http://nowhere", longest=1024) for _ in range(2))
    assert second.costs.prefill == pytest.approx(first.costs.prefill, rel=1e-6)


def test_a_failed_request_and_a_small_model_are_errors(served, monkeypatch):
    monkeypatch.setattr(room, "model_of", lambda url, key: ("small", 128))
    with pytest.raises(InvalidConfig, match="needs 152"):
        room.calibrate("http://nowhere")
    monkeypatch.setattr(room, "model_of", lambda url, key: ("known", 4096))
    monkeypatch.setattr(room, "ask", lambda *_: Answer(0, 0.0, 1, 1, 503, None, (), "busy"))
    with pytest.raises(Unavailable, match="busy"):
        room.calibrate("http://nowhere")


def test_answers_that_were_never_written_side_by_side_tell_no_batch():
    def answer(begun, gaps):
        return Answer(0, begun, 8, 1 + len(gaps), 200, 0.5, gaps)

    one, two = answer(0.0, (0.25,) * 9), answer(0.5, (0.5, *(0.125,) * 20))
    # From 1.5 s, when the second has its second token, to 2.75 s, the end of the first.
    assert room._together([one, two]) == [0.25, 0.125]
    bunched = answer(0.0, (0.25, 0.25, 0.25, 0.25, 1.25, 0.0, 0.0, 0.0, 0.0))
    assert room._together([bunched, two])[0] == 0.25, "what was read at once was not written at once"
    assert room._together([one, answer(10.0, (0.25,) * 5)]) == []


def test_a_machine_that_has_become_slower_is_told_by_how_much(served):
    found = room.calibrate("http://nowhere", longest=1024)
    assert room.again("http://nowhere", found.costs, longest=1024) == pytest.approx((1.0, 1.0), rel=0.02)
    served.slower = 1.25
    assert room.again("http://nowhere", found.costs, longest=1024) == pytest.approx((1.25, 1.25), rel=0.02)


def test_a_step_need_not_be_a_line_of_the_batch():
    seconds = {1: 0.02, 2: 0.05, 4: 0.051, 8: 0.06, 16: 0.08}
    steps = [(b, b * c, seconds[b] + 1e-6 * b * c) for c in (56, 536) for b in seconds]
    written, held = room.fit_steps(steps)
    assert held == pytest.approx(1e-6)
    assert written == pytest.approx(seconds | {4096: 0.08 + 0.0025 * 4080})


def test_what_work_side_by_side_costs_is_found(costs):
    """From what clients see of a simulated machine on which prefills and decode steps slow each other."""
    slow = replace(costs, prefill_beside=1.3, decode_beside=1.5)
    prefill_s = slow.prefill_s(8192)
    calls = [Call(0.001 * i, 8192, 1500, (i,)) for i in range(4)]
    calls += [Call(6 * prefill_s + 3 * i * prefill_s, 8192, 1, (9 + i,)) for i in range(12)]
    calls += [Call(1000.0 + 3 * i * prefill_s, 8192, 1, (99 + i,)) for i in range(3)]
    cluster = Cluster(slow, Shape(1, 1), conductor("global", "none", slow, SLO()), SLO())
    jobs = cluster.run(calls)
    ends = cluster.decode[0].ends
    answers = []
    for job in jobs[:4]:
        written = [job.first_token, *ends[job.join_index : job.join_index + job.call.output - 1]]
        answers.append(_answer(job, tuple(np.diff(written))))
    prompts, alone = ([_answer(job, ()) for job in some] for some in (jobs[4:-3], jobs[-3:]))
    assert room.slowdowns(answers, prompts, alone) == pytest.approx((1.3, 1.5), rel=0.05)
    assert room.slowdowns(answers, [], alone) == (1.0, 1.0)


def _answer(job, gaps):
    call = job.call
    return Answer(job.ask.id, call.at, call.prompt, call.output, 200, job.first_token - call.at, gaps)


def test_costs_are_kept_and_simulated(served, tmp_path, trace_file, capsys):
    file = tmp_path / "costs.json"
    assert cli.main(["calibrate", "--url", "http://nowhere", "--longest", "512", "--out", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "4.57 ms for 1" in printed  # with the 70 us of a step's reduction, which no fit can tell from the rest
    found = room.read_costs(file)
    assert isinstance(found, NodeCosts)
    rows = [
        {"timestamp": 10_000 * i, "input_length": 1024, "output_length": 3, "hash_ids": [2 * i, 2 * i + 1]}
        for i in range(4)
    ]
    options = ["--cluster", "1P+1D", "--policy", "global", "--admission", "none", "--timestamps", "raw", "--json"]
    trace = str(trace_file(*rows))
    assert cli.main(["simulate", trace, "--node", str(file), *options, "--scale", "0.5", "--requests", "3"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["requests"] == 3
    assert figures["ttft_mean_s"] == pytest.approx(found.prefill_s(512))


@pytest.mark.parametrize("text", ["", "{}", '{"name": 3}', '{"cost": 1}', "[]"])
def test_a_file_that_holds_no_costs_is_one_line(text, tmp_path, trace_file, capsys):
    (tmp_path / "bad.json").write_text(text)
    trace = trace_file({"timestamp": 0, "input_length": 8, "output_length": 1, "hash_ids": [1]})
    assert cli.main(["simulate", str(trace), "--node", str(tmp_path / "bad.json")]) == 2
    assert "bad.json" in capsys.readouterr().err
