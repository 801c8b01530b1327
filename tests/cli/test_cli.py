"""The command tree: errors are one line and exit 2, output is what scripts can read."""

import io
import json
import os
import re
import subprocess
import sys

import pytest

from statepool import __version__, cli, doctor


def test_version_and_help(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    listed = capsys.readouterr().out
    for command in ("serve", "chat", "generate", "score", "tokenize", "bench", "doctor", "train"):
        assert re.search(rf"^    {command}\b", listed, re.MULTILINE)


def test_the_installed_command_is_this_one(root_of_package):
    text = (root_of_package / "pyproject.toml").read_text()
    assert 'statepool = "statepool.cli:main"' in text


@pytest.fixture
def root_of_package():
    from pathlib import Path

    return Path(cli.__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "/nowhere", "--text", "a"], "does not exist"),
        (["score", "--quant", "int9", "--text", "a"], "quant (from --quant)"),
        (["score", "--kv-bytes", "many", "--text", "a"], "kv_bytes (from --kv-bytes): 'many' is not a size"),
        (["score", "--max-seqs", "0", "--text", "a"], "max_seqs must be at least 1"),
        (["score", "--config", "none.toml", "--text", "a"], "cannot be read"),
        (["generate", "--prompts", "none.jsonl", "--out", "o.jsonl"], "No such file or directory: none.jsonl"),
        (["tokenize", "/nowhere", "--text", "a"], "tokenizer.json"),
        (["chat", "--url", "ftp://x"], "must start with http"),
        (["serve", "--port", "99999"], "port must be between 0 and 65535"),
    ],
)
def test_what_a_user_can_repair_is_one_line_and_exit_2(capsys, monkeypatch, tmp_path, arguments, message):
    pytest.importorskip("statepool.serve.server")
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    caught = capsys.readouterr()
    assert message in caught.err
    assert len(caught.err.strip().splitlines()) == 1
    assert caught.out == ""


def test_unknown_commands_exit_2():
    with pytest.raises(SystemExit) as stop:
        cli.main(["sing"])
    assert stop.value.code == 2


def test_settings_of_a_file_reach_the_engine(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('model = "m"\nkv_bytes = "2MiB"\nthreads = 3\n')
    options = cli.parser().parse_args(["score", "--config", str(path), "--threads", "1"])
    config = cli._engine_config(options)
    assert (config.model, config.kv_bytes, config.threads) == ("m", 2 << 20, 1)


def test_serve_hands_over_config_and_chat_page(monkeypatch):
    server = pytest.importorskip("statepool.serve.server")
    seen = []
    monkeypatch.setattr(server, "serve", lambda config, extend: seen.append(config) or 0)
    monkeypatch.setenv("STATEPOOL_PORT", "0")
    assert cli.main(["serve", "m", "--quant", "int4", "--vllm-metric-names"]) == 0
    assert cli.main(["serve", "--no-chat-page", "--port", "81"]) == 0
    first, second = seen
    assert (first.engine.model, first.engine.quant, first.port, first.vllm_metric_names) == ("m", "int4", 0, True)
    assert first.chat_page is None or first.chat_page.name == "chat"
    assert (second.chat_page, second.port, second.engine.model) == (None, 81, "tiny")


def test_bench_runs_in_the_checkout_only(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "a" / "b" / "cli.py"))
    assert cli.main(["bench", "engine"]) == 2
    assert "run it in a checkout" in capsys.readouterr().err


def test_train_without_its_extra_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["train", "pretrain", "--out", "nowhere"]) == 2
    assert "statepool[train]" in capsys.readouterr().err


class TestDoctor:
    def test_report_as_values(self, capsys):
        status = cli.main(["doctor", "--json"])
        values = json.loads(capsys.readouterr().out)
        assert status in (0, 1)
        assert values["version"] == __version__
        assert values["cores"] >= 1
        assert values["read_bandwidth_bytes_per_second"] > 1e8
        assert isinstance(values["native"]["loaded"], bool)

    def test_what_is_missing_comes_with_a_remedy(self):
        report = doctor.examine("/nowhere", megabytes=16)
        missing = [finding for finding in report.findings if finding.state == "missing"]
        assert any(finding.topic == "model /nowhere" for finding in missing)
        assert all(finding.remedy for finding in missing)

    def test_native_switched_off_is_reported(self):
        code = "from statepool import doctor; print(*[f.found for f in doctor.examine('/x', 16).findings])"
        environment = {**os.environ, "STATEPOOL_NATIVE": "0"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert "switched off by STATEPOOL_NATIVE=0" in done.stdout


class TestBundledModel:
    """Whole commands over the model in the package."""

    @pytest.fixture(autouse=True)
    def bundled(self):
        from statepool import bundled

        try:
            bundled.path("tiny")
        except FileNotFoundError as error:
            pytest.skip(str(error))

    def test_tokenize_round_trip(self, capsys, monkeypatch):
        assert cli.main(["tokenize", "--text", "hello there", "--json"]) == 0
        ids = json.loads(capsys.readouterr().out)["tokens"]
        monkeypatch.setattr(sys, "stdin", io.StringIO("hello there"))
        assert cli.main(["tokenize"]) == 0
        assert [int(item) for item in capsys.readouterr().out.split()] == ids

    def test_score_prints_every_token(self, capsys):
        arguments = ["score", "--text", "hello there", "--threads", "1", "--kv-bytes", "16MiB"]
        assert cli.main([*arguments, "--json"]) == 0
        values = json.loads(capsys.readouterr().out)
        assert len(values["logprobs"]) == len(values["tokens"])
        assert values["logprobs"][0] is None
        assert values["total"] == pytest.approx(sum(values["logprobs"][1:]))
        assert cli.main(arguments) == 0
        assert f"{len(values['tokens']) - 1} tokens, total" in capsys.readouterr().out

    def test_generate_agrees_with_itself_after_a_restart(self, tmp_path, capsys):
        prompts, out, again = tmp_path / "p.jsonl", tmp_path / "o.jsonl", tmp_path / "again.jsonl"
        lines = [{"prompt": f"{n} + {n} ="} for n in range(5)]
        lines.append({"id": "chat", "messages": [{"role": "user", "content": "hello"}], "temperature": 1.0, "seed": 3})
        prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
        arguments = [
            "generate",
            "--prompts",
            str(prompts),
            "--max-tokens",
            "6",
            "--threads",
            "1",
            "--kv-bytes",
            "16MiB",
        ]
        assert cli.main([*arguments, "--out", str(out)]) == 0
        first = {line["id"]: line["token_ids"] for line in map(json.loads, out.read_text().splitlines())}
        assert set(first) == {"1", "2", "3", "4", "5", "chat"}
        again.write_text("".join(out.read_text().splitlines(keepends=True)[:2]) + '{"id": "to')
        assert cli.main([*arguments, "--out", str(again)]) == 0
        assert {line["id"]: line["token_ids"] for line in map(json.loads, again.read_text().splitlines())} == first
        assert "4 completed, 2 were there already" in capsys.readouterr().err
