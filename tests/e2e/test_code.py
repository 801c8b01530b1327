"""The code interpreter in a whole server: a model that is made to call it, and what a stopped server leaves behind."""

import subprocess

import openai
import pytest
from tests.sandbox.conftest import USABLE

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(not USABLE, reason="no sandbox works here"),
]


def test_a_forced_cell_runs_and_the_same_request_has_the_same_answer(running):
    with running("tiny", code={"code_containers": 2}) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            answers = [
                client.responses.create(
                    model=client.models.list().data[0].id,
                    input="print(2 + 2)",
                    tools=[{"type": "code_interpreter", "container": {"type": "auto"}}],
                    tool_choice={"type": "code_interpreter"},
                    include=["code_interpreter_call.outputs"],
                    temperature=0,
                    max_output_tokens=60,
                )
                for _ in range(2)
            ]
            one, two = ([(item.code, item.outputs) for item in a.output[:1]] for a in answers)
            assert one == two and one[0][1]
            assert answers[0].output_text == answers[1].output_text
            assert answers[0].output[0].container_id != answers[1].output[0].container_id
            assert len(client.containers.list().data) == 2
        inside = _children(server.process.pid)
        assert inside
    assert not [pid for pid in inside if _alive(pid)]


def _children(pid):
    listing = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listing.splitlines()[1:]]
    found = [child for child, parent in pairs if parent == pid]
    return [*found, *(deeper for child in found for deeper in _children(child))]


def _alive(pid):
    return subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout[:1] not in (
        "",
        "Z",
    )
