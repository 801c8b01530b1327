"""Every kind of task goes through a whole run: drawn, shown, answered, judged and learned from."""

import io
import json

import pytest

from statepool.train import config
from statepool.train.report import Report
from statepool.train.run import Run

SHORT = {
    "model": "tiny", "threads": 1, "imitation": 1, "imitation_batch": 2, "demonstrations": 2, "steps": 1, "prompts": 2,
    "members": 3, "turn_tokens": 12, "eval_problems": 0, "kv_bytes": "32MiB", "tensorboard": False,
}  # fmt: skip


class Guess:
    """A small environment with ``reset`` and ``step``, and typed results as in OpenEnv."""

    class Result:
        def __init__(self, observation, reward=None, done=False):
            self.observation, self.reward, self.done = observation, reward, done

    def reset(self):
        return self.Result("Say a number.")

    def step(self, action):
        return self.Result("No.", float(len(action) % 2), done=True)


class Rows:
    """A small environment of verifiers' form."""

    dataset = tuple({"question": f"Say {n}.", "answer": str(n)} for n in range(50))
    rubric = property(lambda self: self)

    async def score_rollout(self, state):
        state["reward"] = float(len(state["completion"][-1]["content"]) % 2)


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        pytest.param("sequences", {}, marks=pytest.mark.slow),  # each problem's anchors are searched for
        ("topology-flips", {}),
        ("environment", {"make": f"{__name__}:Guess"}),
        ("verifiers", {"make": f"{__name__}:Rows"}),
        ("retrieval", {"size": 200}),
        ("column-addition", {"low": 1, "high": 2}),
        ("reasoning-gym", {"dataset": "chain_sum"}),
    ],
)
def test_a_run_goes_through(tmp_path, task, settings):
    if task == "reasoning-gym":
        pytest.importorskip("reasoning_gym")
    path = tmp_path / "run.yaml"
    shown = {"imitation": 0} if task in ("environment", "verifiers") else {}  # these two know no solution
    path.write_text(json.dumps({**SHORT, "task": task, "settings": settings, "out": str(tmp_path), **shown}))
    run = Run(config.read(path))
    report = Report(run.out, False, None, {}, out=io.StringIO())
    try:
        run.go(report)
    finally:
        report.close()
        run.close()
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["imitate"] * (not shown) + ["play"]
    assert lines[0].get("loss") is not None
    assert lines[-1]["judged"] == 6
    assert 0 <= lines[-1]["reward"] <= 1
    assert lines[-1]["gap_max"] <= 1e-5
