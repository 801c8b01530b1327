"""Make `.venv` ready: packages, the right torch for this machine, the native kernels.

Uses the standard library only, because it runs before anything is installed. A stamp file lets a second run
return at once. The order in which a torch is looked for never ends at the default Linux wheel of a package
index on a machine without a GPU, since that one brings 5 GB of CUDA libraries.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "statepool-setup.json"
CONSTRAINTS = VENV / "constraints.txt"
NATIVE = ROOT / "src" / "statepool" / "native"
MODULES = ("_kernels", "_store", "_graph", "_sequences", "_suffix", "_topology")
MODULES += ("_sandbox",) if sys.platform == "linux" else ()
TORCH_RANGE = "torch>=2.11,<3"
OLDEST = (3, 11)

NO_TORCH = (
    "No CPU build of torch was found, and the default one would download 5 GB of CUDA libraries. Serving does not "
    "need torch; tests and training do. Point STATEPOOL_TORCH_INDEX at the package index that pytorch.org names "
    "for CPU, or PIP_FIND_LINKS at a folder with a torch-*+cpu wheel, and run again."
)


class SetupError(Exception):
    """Something this script cannot repair; the message says what to do."""


def say(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr, flush=True)


def run(command: list[str | Path], what: str, env: dict[str, str] | None = None) -> None:
    """Run a command quietly; show the end of its output when it fails."""
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=env, text=True, capture_output=True)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise SetupError(f"{what} failed (exit {done.returncode}):\n{tail}")


def make_venv() -> None:
    """Create `.venv`, seeing the system's packages when they hold a torch that already works."""
    if PYTHON.exists():
        return
    options = ["--system-site-packages"] if torch_version(sys.executable) else []
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        uv = shutil.which("uv")
        if uv is None:
            raise SetupError(
                "this Python has no ensurepip, so it cannot create .venv. On Debian or Ubuntu: "
                "apt-get install python3-venv (or install uv), then run again."
            ) from None
        run([uv, "venv", "--seed", "--allow-existing", "--python", sys.executable, *options, VENV], "uv venv")
        return
    run([sys.executable, "-m", "venv", *options, VENV], "python -m venv")


def pip_settings() -> dict[str, str]:
    """This machine's pip settings (files and environment), by key without its section."""
    listing = subprocess.run([str(PYTHON), "-m", "pip", "config", "list"], text=True, capture_output=True).stdout
    settings: dict[str, str] = {}
    for line in listing.splitlines():
        found = re.fullmatch(r"(:env:|global|install|user|site)\.([a-z-]+)=(.*)", line.strip())
        if not found:
            continue
        section, key, value = found.groups()
        if section == ":env:" or f"env {key}" not in settings:
            settings[key] = str(ast.literal_eval(value)).replace("\n", " ")
        if section == ":env:":
            settings[f"env {key}"] = "set"
    return settings


def uv_environment(pip: dict[str, str]) -> dict[str, str]:
    """The environment for uv: pip's settings under uv's names, since uv reads none of them."""
    env = dict(os.environ)
    names = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE", "no-index": "UV_NO_INDEX"}
    for key, name in names.items():
        if pip.get(key):
            env.setdefault(name, pip[key])
    if pip.get("find-links"):
        env.setdefault("UV_FIND_LINKS", ",".join(pip["find-links"].split()))
    if pip.get("constraint"):
        env.setdefault("UV_CONSTRAINT", pip["constraint"])
    extra = [index for index in pip.get("extra-index-url", "").split() if not missing_folder(index)]
    if extra:
        env.setdefault("UV_INDEX", " ".join(extra))
        # pip takes the best version over all its indexes, uv by default the first index that knows the name
        env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return env


def missing_folder(index: str) -> bool:
    return index.startswith("file://") and not Path(index.removeprefix("file://")).is_dir()


def torch_version(python: str | Path) -> str | None:
    """Version of the torch that `python` can import, or None."""
    code = (
        "import importlib.util as u, importlib.metadata as m\nprint(m.version('torch') if u.find_spec('torch') else '')"
    )
    done = subprocess.run([str(python), "-c", code], text=True, capture_output=True)
    return done.stdout.strip() or None


def cpu_wheel(find_links: str) -> str | None:
    """Highest version of a `torch-*+cpu` wheel for this Python in the folders named by pip's find-links."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    pattern = re.compile(rf"torch-(\d[\d.]*\+cpu)-{tag}-{tag}-.*{re.escape(platform.machine())}\.whl")
    found: list[str] = []
    for link in find_links.replace(",", " ").split():
        folder = Path(link.removeprefix("file://"))
        if folder.is_dir():
            found += [match[1] for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
    return max(found, key=lambda version: [int(part) for part in re.findall(r"\d+", version)], default=None)


def has_gpu() -> bool:
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def answers(index: str) -> bool:
    try:
        with urllib.request.urlopen(index, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True  # an index may refuse its root and still serve packages
    except (OSError, ValueError):
        return False


def pick_torch(pip: dict[str, str], env: dict[str, str]) -> tuple[list[str], str]:
    """Arguments that install the right torch, and the reason. No arguments: there is one, or none can be had."""
    if os.environ.get("STATEPOOL_TORCH") == "none":
        return [], "left out, because STATEPOOL_TORCH=none"
    if version := torch_version(PYTHON):
        return [], f"{version}, already importable"
    if version := cpu_wheel(env.get("UV_FIND_LINKS", pip.get("find-links", ""))):
        return [f"torch=={version}"], f"{version}, from a local folder of wheels"
    if has_gpu():
        return [TORCH_RANGE], "the default build, because nvidia-smi lists a GPU"
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return [TORCH_RANGE], "the default build, which is a CPU build on this platform"
    if index := os.environ.get("STATEPOOL_TORCH_INDEX"):
        if not answers(index):
            raise SetupError(f"STATEPOOL_TORCH_INDEX={index} gave no answer within 5 seconds.")
        return ["--index", index, TORCH_RANGE], "from STATEPOOL_TORCH_INDEX"
    return [], ""


def install(torch: str, extras: list[str]) -> str:
    """Install statepool with `extras` and torch; return the torch version, "" when there is none."""
    pip = pip_settings()
    env = uv_environment(pip)
    if not (VENV / "bin" / "uv").exists():
        say("installing uv")
        pin = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("uv=="))
        run([PYTHON, "-m", "pip", "install", "--quiet", pin], "pip install uv (is a package index reachable?)")
    arguments, reason = pick_torch(pip, env)
    if not reason and torch == "required":
        raise SetupError(NO_TORCH)
    say(f"torch: {reason}" if reason else NO_TORCH)
    pinned = (ROOT / "constraints.txt").read_text()
    if version := torch_version(PYTHON):
        pinned += f"torch=={version}\n"
    CONSTRAINTS.write_text(pinned)
    say("installing packages")
    command = [VENV / "bin" / "uv", "pip", "install", "--quiet", "--python", PYTHON, "--constraint", CONSTRAINTS]
    run([*command, "--editable", f".[{','.join(extras)}]", *arguments], "installing packages", env)
    version = torch_version(PYTHON) or ""
    if version and f"torch=={version}" not in pinned:
        CONSTRAINTS.write_text(pinned + f"torch=={version}\n")
    return version


def native_folder() -> Path:
    """Where the kernels of this Python are compiled."""
    return ROOT / "build" / f"native-cp{sys.version_info.major}{sys.version_info.minor}"


def native_sources() -> str:
    """Changes when an edit calls for a new build. Contents, since times cannot tell an edit made during a build."""
    digest = hashlib.sha256()
    for path in sorted(
        [ROOT / "CMakeLists.txt", *(f for kind in ("cpp", "h", "inc") for f in NATIVE.rglob(f"*.{kind}"))]
    ):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def native_is_current(sources: str) -> bool:
    """Whether every extension is there, made from these sources."""
    stamp = native_folder() / "sources"
    return all(any(NATIVE.glob(f"{name}*.so")) for name in MODULES) and stamp.exists() and stamp.read_text() == sources


def build_native() -> bool:
    """Compile the kernels into the package. False when this machine cannot compile; the reason was said."""
    sources = native_sources()  # as they are before the compiler reads them
    if native_is_current(sources):
        return True
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(shutil.which(name.split()[0]) for name in names):
        say(
            "no C++ compiler, so the fast kernels are not built and the plain reference ones run instead. "
            "On Debian or Ubuntu: apt-get install g++, then make native."
        )
        return False
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        say(
            "the headers of Python are missing, so the fast kernels are not built and the plain reference ones run "
            "instead. On Debian or Ubuntu: apt-get install python3-dev, then make native."
        )
        return False
    say("compiling the native kernels")
    folder = native_folder()
    tools = dict(os.environ, PATH=f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")
    configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    run([*configure, "-DSTATEPOOL_INPLACE=ON", f"-DPython_EXECUTABLE={PYTHON}"], "cmake", tools)
    run(["cmake", "--build", folder], "compiling the native kernels", tools)
    (folder / "sources").write_text(sources)
    return True


def fingerprint() -> str:
    """Changes when an installation made earlier no longer fits this checkout."""
    digest = hashlib.sha256(f"{sys.version} {ROOT}".encode())
    for name in ("pyproject.toml", "constraints.txt", "scripts/setup.py"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def stamp_fits(torch: str, extras: list[str]) -> bool:
    """Whether an earlier run already did all that is asked for now."""
    if not (PYTHON.exists() and STAMP.exists()):
        return False
    stamp = json.loads(STAMP.read_text())
    same = stamp["fingerprint"] == fingerprint() and set(extras) <= set(stamp["extras"])
    return same and (torch == "optional" or bool(stamp["torch"]))


def main() -> int:
    """Entry point of `make setup`, `make native` and the targets that need them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", choices=("required", "optional"), default="required")
    defaults = ["serve", "sandbox", "topology", "dev"]
    parser.add_argument("--extra", action="append", default=defaults, help="install this extra too")
    parser.add_argument("--native-only", action="store_true", help="compile the kernels and nothing else")
    options = parser.parse_args()
    started = time.monotonic()
    try:
        if sys.version_info < OLDEST:
            raise SetupError(
                f"Python {platform.python_version()} is too old; statepool needs 3.11 or newer. "
                "Name one with `make PYTHON=python3.12 …`."
            )
        VENV.mkdir(exist_ok=True)
        with (VENV / ".setup.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            fresh = not options.native_only and not stamp_fits(options.torch, options.extra)
            if fresh:
                make_venv()
                version = install(options.torch, options.extra)
                stamp = {"fingerprint": fingerprint(), "torch": version, "extras": options.extra}
                STAMP.write_text(json.dumps(stamp))
            built = build_native()
            if options.native_only and not built:
                return 1
            if fresh:
                say(f"ready in {time.monotonic() - started:.0f} s")
    except SetupError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
