"""Start-up stays light: what each door into the package may import."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "fastapi", "pydantic", "rich", "tokenizers", "uvicorn", "zmq", "typer", "transformers"}


def imported(code):
    """Top-level packages in sys.modules after running ``code`` in a fresh interpreter."""
    report = "\nimport sys; print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_and_version_import_nothing_heavy():
    for flag in ("--help", "--version"):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "statepool.cli", flag],
            capture_output=True,
            text=True,
            check=True,
        )
        names = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert "statepool" in names
        assert names & HEAVY == set(), flag


def test_the_package_itself_is_empty_handed():
    assert imported("import statepool") & HEAVY == set()


def test_the_engine_needs_neither_torch_nor_the_web():
    assert (
        imported("import statepool.engine.engine, statepool.engine.llm") & {"torch", "transformers", "fastapi"} == set()
    )


def test_the_server_needs_no_torch():
    pytest.importorskip("statepool.serve.server")
    assert imported("import statepool.serve.server") & {"torch", "transformers"} == set()


def test_kv_and_core_stand_alone():
    assert imported("import statepool.kv, statepool.core.errors") & (HEAVY - {"numpy"}) == set()
