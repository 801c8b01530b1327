"""A scan of manifolds by processes of a Ray cluster writes the file of a scan in one process."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("ray")


def test_the_file_is_that_of_one_process(tmp_path):
    files = [tmp_path / "ray.jsonl", tmp_path / "one.jsonl"]
    for file, how in zip(files, (["--ray", "local"], ["--workers", "1"]), strict=True):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "statepool.cli",
                *["topo", "scan", "--census", "2:1", "--slopes", "5", "--out"],
                file,
                *how,
            ],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        assert json.loads(done.stdout.splitlines()[-1])["slopes"] == 40
    assert files[0].read_bytes() == files[1].read_bytes()
