"""The OpenAPI document against the server, with requests drawn from the document itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("schemathesis", reason="schemathesis is not installed")
pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# A body may fit its schema and still ask for what no server can do: a prompt beyond the context, a regular
# expression that is none, a tool that is not offered. Those are 400; every other check is at its strictest.
SETTINGS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "404", "429", "503"]
"""
LEFT_OUT = ("/pause", "/resume", "/update_weights")
"""Operations that would freeze the server under the other tests."""


@pytest.mark.timeout(900)
def test_every_operation_keeps_its_word(running, random_model, tmp_path):
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    program = Path(sys.executable).parent / "schemathesis"
    excluded = [part for path in LEFT_OUT for part in ("--exclude-path", path)]
    with running(random_model, engine={"max_model_len": 128}) as server:
        done = subprocess.run(
            [
                program,
                "run",
                f"{server.url}/openapi.json",
                "--phases=examples,coverage,fuzzing",
                f"--max-examples={os.environ.get('SCHEMATHESIS_EXAMPLES', '15')}",
                "--checks=all",
                "--seed=1",
                "--request-timeout=60",
                "--no-color",
                *excluded,
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
        server.wait_until(lambda: sum(server.metrics(["requests_running", "requests_waiting"])) == 0)
        # A session that was drawn and not deleted keeps its blocks by right.
        assert server.all_free() or server.metric("sessions") > 0
