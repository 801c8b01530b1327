"""Settings: precedence, types and the errors a user reads."""

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool.core.config import Settings, parse_size
from statepool.core.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class Pump:
    name: str = "west"
    port: int = 1
    kv_bytes: int = 4
    mode: Literal["slow", "fast"] = "slow"
    share: float = 0.5
    loud: bool = False


@pytest.fixture
def settings():
    return Settings([Pump])


def test_flags_beat_environment_beats_file_beats_default(settings, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('port = 2\nname = "file"\nmode = "fast"\n')
    settings.read_file(path)
    settings.read_environment({"STATEPOOL_PORT": "3", "STATEPOOL_NAME": "env", "HOME": "/"})
    settings.read_flags({"port": "4", "name": None, "other": 1})
    assert settings.build(Pump) == Pump(name="env", port=4, mode="fast")
    assert settings.source("port") == "--port"
    assert settings.source("share") is None


def test_yaml_and_dashes(settings, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("kv-bytes: 2KiB\nloud: yes\n")
    settings.read_file(path)
    assert settings.build(Pump) == Pump(kv_bytes=2048, loud=True)
    path.write_text("")
    settings.read_file(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "prot = 1", r"unknown setting 'prot' in .*a\.toml; did you mean 'port'\?"),
        ("a.toml", "zzzz = 1", "known are kv_bytes, loud, mode, name, port, share"),
        ("a.toml", "port = ", "not valid TOML"),
        ("a.yaml", "port: [", "not valid YAML"),
        ("a.yaml", "- 1", "must hold one table of settings, got list"),
        ("a.ini", "", "must end in .toml, .yaml or .yml"),
        ("b/a.toml", None, "cannot be read"),
    ],
)
def test_bad_files(settings, tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidConfig, match=message):
        settings.read_file(path)


def test_wrong_types_name_key_and_source(settings):
    settings.read_environment({"STATEPOOL_PORT": "eight"})
    with pytest.raises(InvalidConfig, match=r"port \(from STATEPOOL_PORT\).*integer.*got 'eight'") as caught:
        settings.build(Pump)
    assert caught.value.param == "port"
    settings.read_flags({"port": 1, "mode": "warp"})
    with pytest.raises(InvalidConfig, match=r"mode \(from --mode\).*'slow' or 'fast'"):
        settings.build(Pump)


def test_a_misspelt_variable_is_an_error_and_a_foreign_one_is_not(settings):
    settings.read_environment({"STATEPOOL_NATIVE": "0", "STATEPOOL_ISA": "avx2"})
    with pytest.raises(InvalidConfig, match="did you mean 'STATEPOOL_KV_BYTES'"):
        settings.read_environment({"STATEPOOL_KV_BITES": "1"})


def test_checks_of_the_dataclass_reach_the_user():
    @dataclass
    class Checked:
        port: int = 1

        def __post_init__(self):
            if self.port < 1:
                raise InvalidConfig("port must be at least 1", param="port")

    settings = Settings([Checked])
    settings.read_flags({"port": "-1"})
    with pytest.raises(InvalidConfig, match="port must be at least 1"):
        settings.build(Checked)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("1kb", 1000), ("1KiB", 1024), ("1.5 GiB", 3 << 29), ("2g", 2 * 10**9), (7, 7), ("3b", 3)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 parsec", "1e9", "1 GiB 2", True])
def test_not_sizes(text):
    with pytest.raises(InvalidConfig, match="is not a size"):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_whole_bytes_survive(count):
    assert parse_size(str(count)) == count
