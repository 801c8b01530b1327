"""A run: it learns, survives being killed anywhere with the same curve, and refuses what cannot be."""

import io
import itertools
import json
import subprocess
import sys
import time

import pytest
import torch

from statepool.core.errors import InvalidConfig, InvalidRequest
from statepool.train import checkpoint, config
from statepool.train.commands import main
from statepool.train.learner import Learner
from statepool.train.report import Report, spark
from statepool.train.run import Run

SETTINGS = {
    "model": "tiny",
    "task": "python-steps",
    "settings": {"steps": 1, "digits": 5},
    "threads": 1,
    "imitation": 2,
    "imitation_batch": 4,
    "demonstrations": 6,
    "steps": 3,
    "prompts": 3,
    "members": 3,
    "rate": 3e-4,
    "turn_tokens": 48,
    "turns": 3,
    "eval_every": 3,
    "eval_problems": 6,
    "kv_bytes": "32MiB",
    "tensorboard": False,
    "isolation": "process",
}


@pytest.fixture
def written(tmp_path):
    def write(**changes):
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps({**SETTINGS, "out": str(tmp_path / "out"), **changes}))
        return path

    return write


def finish(path, fresh=False):
    run = Run(config.read(path), fresh)
    report = Report(run.out, False, None, {}, out=io.StringIO())
    try:
        run.go(report)
    finally:
        report.close()
        run.close()
    return run


def curve(folder):
    """The lines of a curve without what a clock wrote."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in checkpoint.read_curve(folder)]


def weights(folder):
    return torch.load(folder / checkpoint.FILE, weights_only=True)["model"]


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "run.yaml").write_text(json.dumps({**SETTINGS, "out": str(folder)}))
    finish(folder / "run.yaml")
    return folder


def test_a_curve_tells_what_happened(unbroken):
    lines = curve(unbroken)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert [line["phase"] for line in lines] == ["start", "imitate", "imitate", "play", "play", "play"]
    assert [line["step"] for line in lines if "held_out" in line] == [0, 2, 3, 5]
    for line in lines[3:]:
        assert 0 <= line["reward"] <= 1
        assert line["gap_max"] <= 1e-4
        assert sum(line["ends"].values()) == line["judged"] == 9
    assert any(line["grad_norm"] > 0 for line in lines[3:])


def test_the_model_it_writes_is_the_one_it_trained(unbroken):
    from safetensors.torch import load_file

    assert same(weights(unbroken), load_file(unbroken / "model" / "model.safetensors"))


def looked(run):
    solved, score = run.held_out()
    return {"held_out": solved, "held_out_score": score}


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_stopped_run_goes_on_with_the_same_bits(written, unbroken, tmp_path, stop):
    run = Run(config.read(written()))
    report = Report(run.out, False, None, {}, out=io.StringIO())
    report.line({"step": 0, "phase": "start", **looked(run), "seconds": 0})
    for _ in range(stop):
        line = run.advance()
        if run.step in (2, 3):
            line |= looked(run)
        checkpoint.save(run.out, run.learner, run.step, run.config.plain())
        report.line({**line, "seconds": 0})
    # A line of a step whose checkpoint was never written, and a torn one: both go.
    report.line({"step": stop + 1, "phase": "play", "reward": 0.0, "seconds": 0})
    report.close()
    with (run.out / checkpoint.CURVE).open("a") as file:
        file.write('{"step": 9, "pha')
    run.close()
    finish(written())
    assert curve(tmp_path / "out") == curve(unbroken)
    assert same(weights(tmp_path / "out"), weights(unbroken))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_curve_is_the_same(written, unbroken, tmp_path, times):
    command = [sys.executable, "-m", "statepool.cli", "train", str(written())]
    out = tmp_path / "out"
    for kills in range(times):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                while process.poll() is None and len(checkpoint.read_curve(out)) < 3 + kills:
                    time.sleep(0.01)
            finally:
                process.kill()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    assert curve(out) == curve(unbroken)
    assert same(weights(out), weights(unbroken))


def test_engines_in_processes_of_their_own_leave_the_same_curve(written, unbroken, tmp_path):
    finish(written(engines=2))
    counted = [{k: v for k, v in line.items() if k not in ("computed", "fresh")} for line in curve(unbroken)]
    assert curve(tmp_path / "out") == counted
    assert same(weights(tmp_path / "out"), weights(unbroken))


def test_a_finished_run_has_nothing_to_do(written, unbroken, tmp_path):
    finish(written())
    before = curve(tmp_path / "out")
    finish(written())
    assert curve(tmp_path / "out") == before


def test_other_settings_need_another_folder(written, unbroken):
    path = unbroken / "other.yaml"
    path.write_text(json.dumps({**SETTINGS, "out": str(unbroken), "rate": 1e-4}))
    with pytest.raises(checkpoint.CheckpointMismatch, match=r"rate 0\.0003, not 0\.0001"):
        Run(config.read(path))


def test_a_damaged_checkpoint_is_named(written, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / checkpoint.FILE).write_bytes(b"not a checkpoint")
    with pytest.raises(InvalidConfig, match="no checkpoint of a run"):
        Run(config.read(written()))


def test_a_loss_that_is_no_number_stops_the_run_before_it_spreads(written, monkeypatch, capsys):
    from statepool.train import learner

    monkeypatch.setattr(learner, "policy_loss", lambda *a: (a[0].sum() * float("nan"), {"clipped": 0.0, "kl": 0.0}))
    path = written(imitation=0, steps=1, eval_problems=0)
    assert main(["train", str(path)]) == 2
    said = capsys.readouterr().err
    assert "the loss is nan" in said
    assert said.count("statepool train:") == 1


def test_a_run_whose_judge_never_judges_stops_and_says_so(written, monkeypatch, capsys):
    from statepool.tasks.tools import PythonSteps

    def raises(*_):
        raise ValueError("no")

    monkeypatch.setattr(PythonSteps, "verify", raises)
    easy = {"settings": {"steps": 1, "digits": 1}, "turn_tokens": 64, "temperature": 0.5}  # every one gets to an answer
    assert main(["train", str(written(imitation=0, steps=1, eval_problems=0, **easy))]) == 2
    assert "'verifier_error': " in capsys.readouterr().err


def test_a_step_goes_on_beside_every_fault_and_rewards_none(written, monkeypatch, tmp_path):
    """Tools that break, hang or are cut, calls that are none, a judge that raises: by the text of each call."""
    from statepool.tasks.tools import PythonSteps
    from statepool.train.dialogue import ToolBroken, ToolTimeout
    from statepool.train.python_tool import PythonTool

    calls, verify = itertools.count(), PythonSteps.verify
    faults = [ToolBroken("the sandbox burnt down"), ToolTimeout("too long"), InvalidRequest("no code"), "x" * 900]
    answers = itertools.count()

    def call(self, arguments):
        fault = faults[next(calls) % len(faults)]
        if isinstance(fault, Exception):
            raise fault
        return fault

    def judge(self, problem, answer):
        if next(answers) % 2:
            raise ValueError("the judge fell asleep")
        return verify(self, problem, answer)

    monkeypatch.setattr(PythonTool, "call", call)
    monkeypatch.setattr(PythonSteps, "verify", judge)
    seen = []
    monkeypatch.setattr(Learner, "reinforce", watch(Learner.reinforce, seen))
    sizes = {"imitation": 0, "steps": 1, "eval_problems": 0, "members": 8, "turn_tokens": 64}
    finish(written(settings={"steps": 1, "digits": 1}, tool_threads=1, **sizes))
    (line,) = curve(tmp_path / "out")
    (found,) = seen
    wanted = {"tool_broken", "tool_timeout", "malformed_call", "output_cut", "verifier_error"}
    assert wanted <= set(line["faults"])
    lost = [t for t in found if t.verdict is None]
    assert line["ends"]["lost"] == len(lost) == line["faults"]["tool_broken"] + line["faults"]["verifier_error"]
    assert line["judged"] == len(found) - len(lost)
    assert line["reward"] == sum(t.verdict.score for t in found if t.verdict) / line["judged"]
    assert line["used"] <= line["judged"]


def watch(reinforce, seen):
    def watched(self, trajectories, rate):
        seen.append(trajectories)
        return reinforce(self, trajectories, rate)

    return watched


def test_a_gap_that_is_too_large_stops_the_run(written, capsys):
    assert main(["train", str(written(quant="int8", max_gap=1e-6, imitation=0, steps=1, eval_problems=0))]) == 2
    assert "more than max_gap" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tsak": "echo"}, "did you mean 'task'"),
        ({"task": None}, "task"),
        ({"task": "nothing"}, "unknown task 'nothing'"),
        ({"task": "python-steps", "settings": {"digit": 3}}, "no setting 'digit'"),
        ({"members": 1}, "members must be at least 2"),
        ({"rate": 0}, "rate must be above 0"),
        ({"prompts": "many"}, "prompts"),
        ({"model": "/nowhere"}, "/nowhere"),
    ],
)
def test_bad_settings_are_one_line_that_names_them(written, capsys, changes, said):
    assert main(["train", str(written(**changes))]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("package", "changes", "said"),
    [
        ("wandb", {"wandb": "mine"}, "pip install wandb"),
        ("tensorboardX", {"tensorboard": True}, "pip install 'statepool[train]', or set it to false"),
    ],
)
def test_a_log_whose_package_is_missing_stops_the_run_before_it_begins(
    written, capsys, monkeypatch, tmp_path, package, changes, said
):
    monkeypatch.setitem(sys.modules, package, None)
    closed, close = [], Run.close
    monkeypatch.setattr(Run, "close", lambda self: (closed.append(self.step), close(self)))
    assert main(["train", str(written(**changes))]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert closed == [0], "weights in shared memory and tools are given back"
    assert not (tmp_path / "out" / "curve.jsonl").exists()


def test_eval_tells_how_a_model_does(capsys):
    command = ["eval", "tiny", "--task", "python-steps", "--set", "steps=1", "--count", "8", "--threads", "1"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == 8
    assert found["success"] >= 0.7
    assert found["mean_score"] == found["success"], "a problem of this task is solved or not"
    assert main([*command, "--show", "1"]) == 0
    assert "held-out problems of python-steps solved" in capsys.readouterr().out
    assert main(["eval", "--task", "python-steps", "--set", "steps"]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err
    assert main(["eval", "--list"]) == 0
    assert "python-steps" in capsys.readouterr().out.splitlines()


def test_the_row_of_bars_stays_in_range():
    assert spark([-1, 0, 0.5, 1, 2, 0.2], 4) == "▄██▂"
