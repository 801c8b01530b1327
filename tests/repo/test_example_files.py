"""Every file in examples/ runs as its README says."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from statepool import LLM, SamplingParams

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {
    "long_document.py": "tokens of document",
    "agent.py": "28.27",
    "vector_alone.py": "[17,",
    "store_alone.py": "visit 1",
}
RUNS = ["tool_agent.yaml", "sequence_agent.yaml"]
PLATFORMS = ["two_nodes.yaml"]


def run(*command, folder, seconds=250):
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_listed_and_run():
    text = (EXAMPLES / "README.md").read_text()
    files = {path.name for path in EXAMPLES.iterdir()} - {"README.md"}
    assert files == {*SCRIPTS, *RUNS, *PLATFORMS}
    assert [name for name in files if f"]({name})" not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name, tmp_path):
    assert SCRIPTS[name] in run(EXAMPLES / name, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
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


@pytest.mark.parametrize("name", PLATFORMS)
def test_platform_file_has_no_mistake(name):
    from statepool.house.check import mistakes

    assert mistakes(EXAMPLES / name, here=False) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PLATFORMS)
def test_platform(name, tmp_path):
    """It comes up, answers with the tokens of one engine, and goes."""
    prompt, tokens = "The code of fox is 472. The code of owl is 91. The code of fox is", 12
    (alone,) = LLM("tiny", threads=1).generate([prompt], SamplingParams(max_tokens=tokens, temperature=0))
    with subprocess.Popen(
        [sys.executable, "-m", "statepool.cli", "up", EXAMPLES / name, "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            url = next(found[1] for line in process.stdout if (found := re.search(r"API\s+(http://\S+)/v1", line)))
            body = {"model": "statepool-tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
            engines = httpx.get(f"{url}/cluster", timeout=60).json()["engines"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert answer.json()["choices"][0]["text"] == alone.text
    assert {each["role"]: each["generated_tokens"] > 0 for each in engines} == {"prefill": True, "decode": True}
