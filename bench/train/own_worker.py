"""Our side of the race, in a process of its own: GRPO until the reward reaches its target, a line of JSON per step."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from statepool.train.config import RunConfig, read
from statepool.train.run import Run


def settings(given: dict[str, Any]) -> RunConfig:
    """The run that the peer's settings describe."""
    folder = Path(tempfile.mkdtemp(prefix="race-"))
    path = folder / "race.yaml"
    names = ("model", "task", "seed", "steps", "prompts", "members", "rate", "warmup", "threads", "settings")
    fixed = {
        "out": str(folder), "turn_tokens": given["tokens"], "turns": 1, "decay": 1e-9, "tensorboard": False,
        "eval_problems": 0, "isolation": "process", "dual_clip": None, "tis": None, "clip_low": 0.2, "clip_high": 0.28,
    }  # fmt: skip
    path.write_text(json.dumps({**{name: given[name] for name in names}, **fixed}))
    return read(path)


def main(given: dict[str, Any]) -> None:
    """Run the race."""
    run = Run(settings(given))
    rewards: list[float] = []
    began, cpu = time.monotonic(), time.process_time()
    try:
        while run.step < run.last:
            line = run.advance()
            spent = {"seconds": time.monotonic() - began, "cpu": time.process_time() - cpu}
            print(
                json.dumps({"step": run.step, "reward": line["reward"], "tokens": line["tokens"], **spent}), flush=True
            )
            rewards.append(line["reward"])
            last = rewards[-given["window"] :]
            if len(last) == given["window"] and sum(last) / len(last) >= given["target"]:
                break
    finally:
        run.close()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
