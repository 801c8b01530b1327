"""Every file in examples/ runs as its README says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*command, folder, seconds=250):
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_listed():
    text = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        assert path.name == "README.md" or f"]({path.name})" in text, path.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("long_document.py", "tokens of document"),
        ("agent.py", "28.27"),
        ("vector_alone.py", "[17,"),
        ("store_alone.py", "visit 1"),
    ],
)
def test_script(name, says, tmp_path):
    assert says in run(EXAMPLES / name, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tool_agent.yaml", "sequence_agent.yaml"])
def test_training(name, tmp_path):
    pytest.importorskip("torch", reason="training needs torch")
    import yaml

    settings = yaml.safe_load((EXAMPLES / name).read_text())
    settings |= {"out": str(tmp_path / "run"), "imitation": 1, "demonstrations": 2, "imitation_batch": 2, "steps": 1}
    settings |= {"prompts": 1, "members": 2, "eval_problems": 1, "threads": 1, "tensorboard": False, "turn_tokens": 16}
    settings.pop("target", None)
    (tmp_path / "short.yaml").write_text(json.dumps(settings))
    run("-m", "statepool.cli", "train", tmp_path / "short.yaml", folder=tmp_path)
    assert (tmp_path / "run" / "curve.jsonl").read_text().count("\n") >= 2


def test_platform_file_has_no_mistake(tmp_path):
    from statepool.house.check import mistakes

    assert mistakes(EXAMPLES / "two_nodes.yaml", here=False) == []
