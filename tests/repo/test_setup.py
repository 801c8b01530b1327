"""The choices of scripts/setup.py, without installing anything."""

import os
import platform
import sys
from pathlib import Path

import pytest

TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"
LINUX = f"manylinux_2_28_{platform.machine()}.whl"


@pytest.fixture
def setup(script, monkeypatch):
    module = script("setup")
    monkeypatch.setattr(module, "torch_version", lambda python: None)
    monkeypatch.setattr(module, "has_gpu", lambda: False)
    monkeypatch.setattr(module.platform, "system", lambda: "Linux")
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("STATEPOOL_TORCH", raising=False)
    monkeypatch.delenv("STATEPOOL_TORCH_INDEX", raising=False)
    return module


@pytest.fixture
def wheels(tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    for version, tag, build in [
        ("2.9.1", TAG, "+cpu"),
        ("2.13.0", TAG, "+cpu"),
        ("2.14.0", "cp38", "+cpu"),
        ("3.0.0", TAG, ""),
    ]:
        (folder / f"torch-{version}{build}-{tag}-{tag}-manylinux_2_28_x86_64.whl").touch()
    return folder


def test_a_torch_that_is_there_comes_first(setup, wheels, monkeypatch):
    monkeypatch.setattr(setup, "torch_version", lambda python: "2.12.0")
    arguments, reason = setup.pick_torch({"find-links": str(wheels)}, {})
    assert arguments == []
    assert "2.12.0" in reason


@pytest.mark.parametrize("form", ["{0}", "file://{0}", "/nowhere {0}", "/nowhere,{0}"])
def test_then_the_newest_local_cpu_wheel_for_this_python(setup, wheels, form):
    assert setup.pick_torch({"find-links": form.format(wheels)}, {})[0] == ["torch==2.13.0+cpu"]


def test_then_a_gpu(setup, monkeypatch):
    monkeypatch.setattr(setup, "has_gpu", lambda: True)
    monkeypatch.setenv("STATEPOOL_TORCH_INDEX", "https://cpu.example/simple")
    assert setup.pick_torch({}, {})[0] == [setup.TORCH_RANGE]


def test_then_the_index_of_the_environment_if_it_answers(setup, monkeypatch):
    monkeypatch.setenv("STATEPOOL_TORCH_INDEX", "https://cpu.example/simple")
    monkeypatch.setattr(setup, "answers", lambda index: True)
    assert setup.pick_torch({}, {})[0] == ["--index", "https://cpu.example/simple", setup.TORCH_RANGE]
    monkeypatch.setattr(setup, "answers", lambda index: False)
    with pytest.raises(setup.SetupError, match="no answer within 5 seconds"):
        setup.pick_torch({}, {})


def test_never_the_default_wheel_on_linux_without_a_gpu(setup):
    assert setup.pick_torch({}, {}) == ([], "")


def test_the_default_wheel_where_it_is_a_cpu_build(setup, monkeypatch):
    monkeypatch.setattr(setup.platform, "machine", lambda: "aarch64")
    assert setup.pick_torch({}, {})[0] == [setup.TORCH_RANGE]


def test_without_torch_on_request(setup, wheels, monkeypatch):
    monkeypatch.setenv("STATEPOOL_TORCH", "none")
    assert setup.pick_torch({"find-links": str(wheels)}, {})[0] == []


def test_pip_settings_reach_uv_under_its_names(setup, monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("UV_", "SSL_CERT"))]:
        monkeypatch.delenv(name)
    local = tmp_path / "index"
    local.mkdir()
    pip = {
        "index-url": "https://mirror.example/simple",
        "extra-index-url": f"file://{local} file:///gone/simple https://more.example/simple",
        "find-links": "/a /b",
        "cert": "/certs.pem",
        "constraint": "/pins.txt",
    }
    env = setup.uv_environment(pip)
    assert env["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert env["UV_INDEX"] == f"file://{local} https://more.example/simple"
    assert env["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert env["UV_FIND_LINKS"] == "/a,/b"
    assert env["SSL_CERT_FILE"] == "/certs.pem"
    assert env["UV_CONSTRAINT"] == "/pins.txt"


def test_the_users_own_uv_settings_win(setup, monkeypatch):
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mine.example/simple")
    assert (
        setup.uv_environment({"index-url": "https://mirror.example"})["UV_DEFAULT_INDEX"]
        == "https://mine.example/simple"
    )


def test_pip_environment_wins_over_pip_files(setup, monkeypatch):
    class Done:
        stdout = ":env:.find-links='/env'\nglobal.find-links='/file'\nglobal.cert='/c'\nnoise\n"

    monkeypatch.setattr(setup.subprocess, "run", lambda *a, **k: Done())
    settings = setup.pip_settings()
    assert settings["find-links"] == "/env"
    assert settings["cert"] == "/c"


@pytest.fixture
def tree(setup, monkeypatch, tmp_path):
    """A tree with one source, and a compiler that makes the modules; the list is of its calls."""
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "NATIVE", tmp_path / "native")
    (tmp_path / "native").mkdir()
    (tmp_path / "CMakeLists.txt").touch()
    (tmp_path / "native" / "a.cpp").write_text("1")
    calls = []

    def run(command, what, env=None):
        calls.append(what)
        setup.native_folder().mkdir(parents=True, exist_ok=True)
        for module in setup.MODULES:
            (tmp_path / "native" / f"{module}.so").touch()

    monkeypatch.setattr(setup, "run", run)
    monkeypatch.setattr(setup.shutil, "which", lambda name: name)
    monkeypatch.setattr(setup.sysconfig, "get_paths", lambda: {"include": tmp_path})
    (tmp_path / "Python.h").touch()
    return tmp_path / "native", calls


def builds(setup, calls):
    """Whether the next call compiles."""
    calls.clear()
    assert setup.build_native()
    return bool(calls)


def test_native_is_built_once_and_again_after_an_edit(setup, tree):
    folder, calls = tree
    assert builds(setup, calls)
    assert not builds(setup, calls)
    before = (folder / "a.cpp").stat()
    (folder / "a.cpp").write_text("2")
    os.utime(folder / "a.cpp", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert builds(setup, calls)
    (folder / "b.h").write_text("new")
    assert builds(setup, calls)
    (folder / f"{setup.MODULES[0]}.so").unlink()
    assert builds(setup, calls)
    assert not builds(setup, calls)


def test_an_edit_during_a_build_calls_for_another(setup, tree, monkeypatch):
    folder, calls = tree
    compiler = setup.run

    def edited(command, what, env=None):
        if what != "cmake":
            (folder / "a.cpp").write_text("edited while the compiler ran")
        compiler(command, what, env)

    monkeypatch.setattr(setup, "run", edited)
    assert builds(setup, calls)
    monkeypatch.setattr(setup, "run", compiler)
    assert builds(setup, calls)
    assert not builds(setup, calls)


def test_no_compiler_is_said_in_one_sentence(setup, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(setup, "native_is_current", lambda sources: False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    assert setup.build_native() is False
    assert "apt-get install g++" in capsys.readouterr().err


def test_stamp_is_bound_to_extras_and_torch(setup, monkeypatch, tmp_path):
    stamp = tmp_path / "stamp.json"
    monkeypatch.setattr(setup, "STAMP", stamp)
    monkeypatch.setattr(setup, "PYTHON", Path(sys.executable))
    assert not setup.stamp_fits("optional", ["serve"])
    stamp.write_text(setup.json.dumps({"fingerprint": setup.fingerprint(), "torch": "", "extras": ["serve", "dev"]}))
    assert setup.stamp_fits("optional", ["serve"])
    assert not setup.stamp_fits("required", ["serve"])
    assert not setup.stamp_fits("optional", ["serve", "e2e"])
