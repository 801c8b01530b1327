"""The file of ``statepool up``: every mistake is named with its line, and the default has none."""

import socket

import pytest

from statepool.core.errors import InvalidConfig
from statepool.house.check import mistakes, read
from statepool.house.commands import DEFAULT, main

WRONG = """\
serve:
  quant: int5
  prot: 8000
  kv_bytes: lots
  workers: -1
  pool_nodes: 0
sandbox:
  redy: 3
  most: 0
vektor: x
store: {}
vector: {port: 8300}
"""


def written(tmp_path, text):
    path = tmp_path / "house.yaml"
    path.write_text(text)
    return path


def test_every_mistake_is_named_with_its_line(tmp_path):
    found = mistakes(written(tmp_path, WRONG))
    places = [(each.line, each.key) for each in found]
    assert places == [
        (2, "serve.quant"),
        (3, "serve.prot"),
        (4, "serve.kv_bytes"),
        (5, "serve.workers"),
        (6, "serve.pool_nodes"),
        (8, "sandbox.redy"),
        (9, "sandbox.most"),
        (10, "vektor"),
        (11, "store.path"),
        (12, "vector.path"),
    ]
    assert "did you mean 'port'?" in found[1].text
    with pytest.raises(InvalidConfig) as raised:
        read(tmp_path / "house.yaml")
    assert raised.value.message.count("\n") == len(found) - 1


def test_default_is_sound_and_complete():
    house = read(DEFAULT)
    assert mistakes(DEFAULT, here=False) == []
    assert (house.serve.engine.model, house.serve.port, house.serve.cluster.engines) == ("tiny", 8000, 1)
    assert house.file.sandbox is not None and house.file.store is not None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n", "must be a table"),
        ("serve: [\n", "no YAML"),
        ("serve: {workers: 0, prefill: 1}\n", "decode must be at least 1"),
        ("sandbox: 3\n", "valid dictionary"),
    ],
)
def test_forms_that_are_no_platform(tmp_path, text, says):
    assert any(says in each.text for each in mistakes(written(tmp_path, text)))


def test_an_empty_file_is_the_server_alone(tmp_path):
    house = read(written(tmp_path, ""))
    assert house.file.store is None
    assert house.sources(None, None).store is None


def test_what_this_machine_lacks(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = f"serve: {{model: ./nowhere, port: {port}}}\nvector: {{path: {tmp_path}/none.idx}}\n"
        path = written(tmp_path, text)
        assert [each.key for each in mistakes(path)] == ["serve.model", "serve.port", "vector.path"]
        assert mistakes(path, here=False) == []


def test_two_rooms_at_one_port(tmp_path):
    (tmp_path / "docs.idx").touch()
    text = f"serve: {{port: 18123}}\nsandbox: {{port: 18123}}\nvector: {{path: {tmp_path}/docs.idx, port: 18123}}\n"
    found = mistakes(written(tmp_path, text))
    assert [(each.key, "port of serve" in each.text) for each in found] == [
        ("sandbox.port", True),
        ("vector.port", True),
    ]


def test_config_check_is_a_command(tmp_path, capsys):
    assert main(["config", "check", str(written(tmp_path, WRONG))]) == 1
    assert "line 3: serve.prot" in capsys.readouterr().out
    assert main(["config", "default"]) == 0
    assert capsys.readouterr().out == DEFAULT.read_text()
