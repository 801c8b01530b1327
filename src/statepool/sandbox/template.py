"""Templates: what a sandbox holds before its tenant's first instruction, and the folder its root begins with.

A template's memory is a zygote process that has imported ``preload``; its files are a small folder (``/etc``, empty
mount points) under read-only binds of the host's ``/usr`` and of the interpreter.
"""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from statepool.core.config import parse_size
from statepool.core.errors import InvalidRequest

__all__ = ["HOME", "PACKAGES", "Limits", "Template", "skeleton"]

HOME = "/home/user"
"""Where a tenant's files are."""
PACKAGES = "/opt/packages"
"""Where what a tenant installs from its template's wheels goes."""
_ETC = (
    "ld.so.cache",
    "ld.so.conf",
    "nsswitch.conf",
    "localtime",
    "services",
    "protocols",
    "mime.types",
    "os-release",
    "bash.bashrc",
)
_ETC_TREES = ("ssl", "alternatives", "fonts", "ca-certificates")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PLAIN = ("dev", "etc", "home/user", "mnt", "opt", "proc", "root", "run/shm", "srv", "sys", "tmp", "var/tmp", "var/log")
_OPEN = ("run/shm", "tmp", "var/tmp")
_PIP = {
    "PIP_NO_INDEX": "1",
    "PIP_TARGET": PACKAGES,
    "PIP_NO_COMPILE": "1",
    "PIP_NO_CACHE_DIR": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_CONFIG_FILE": "/dev/null",
    "PYTHONPATH": PACKAGES,
}
"""For pip in a sandbox with wheels: from them alone, into a folder that cells and commands look in."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use.

    Args:
        memory_bytes: of its processes, its files included; they lie in memory.
        files_bytes: of one layer of files.
        inodes: files and folders of one layer.
        processes: processes and threads at once.
        cpus: cores, as a share of time.
        open_files: descriptors of one process.
        output_bytes: of one cell or command; what is more is dropped and said so.
        file_bytes: of one file.
    """

    memory_bytes: int = 512 << 20
    files_bytes: int = 512 << 20
    inodes: int = 200_000
    processes: int = 256
    cpus: float = 1.0
    open_files: int = 4096
    output_bytes: int = 8 << 20
    file_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        least = {"memory_bytes": 16 << 20, "files_bytes": 1 << 20, "inodes": 64}
        for name, value in (least | {"processes": 4, "cpus": 0.01, "open_files": 16}).items():
            if getattr(self, name) < value:
                raise InvalidRequest(f"limits.{name}: must be at least {value}, got {getattr(self, name)}", param=name)


@dataclass(frozen=True, slots=True)
class Template:
    """A kind of sandbox.

    Args:
        name: what callers ask for.
        preload: modules the zygote imports; they cost every sandbox nothing.
        warm: code the zygote runs once after that, to import what cells import lazily.
        files: text by relative path below ``/home/user``.
        env: variables of every process.
        limits: defaults for its sandboxes.
        layers: folders of files on top of the root, the last one uppermost.
        binds: further host folders that a sandbox sees, read-only, at the same path.
        wheels: host folder of wheels that a tenant may install from (``Sandbox.install``), without a network.
        debug: let a tenant trace its own processes (gdb, strace).
    """

    name: str = "py"
    preload: tuple[str, ...] = ()
    warm: str = ""
    files: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    layers: tuple[str, ...] = ()
    binds: tuple[str, ...] = ()
    wheels: str = ""
    debug: bool = False

    def __post_init__(self) -> None:
        if not self.name or set("/\0\n") & set(self.name) or self.name.startswith("."):
            raise InvalidRequest(
                f"template: {self.name!r} is no name; use letters, digits and dashes", param="template"
            )
        for path in (*self.layers, *self.binds, *filter(None, [self.wheels])):
            if not Path(path).is_absolute() or not Path(path).is_dir():
                raise InvalidRequest(
                    f"template {self.name}: {path!r} is not the absolute path of a folder", param="layers"
                )
            if set(path) & set(":,\\"):
                raise InvalidRequest(
                    f"template {self.name}: {path!r} holds a colon, comma or backslash", param="layers"
                )
        for name in self.files:
            if Path(name).is_absolute() or os.path.normpath(name).split("/")[0] in ("..", "."):
                raise InvalidRequest(f"template {self.name}: {name!r} leads out of {HOME}", param="files")

    def limited(self, **changes: Any) -> Limits:
        """The limits with the changes that are not None."""
        return replace(self.limits, **{name: value for name, value in changes.items() if value is not None})

    @classmethod
    def read(cls, path: Path) -> Template:
        """A manifest in TOML: the fields above; sizes in ``[limits]`` may be text such as "512MiB".

        Raises:
            InvalidRequest: not readable, an unknown key, or a value that does not fit.
        """
        try:
            table = tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"template {path}: {error}", param="template") from None
        known = set(cls.__dataclass_fields__)
        limits = table.pop("limits", {})
        for name in set(table) - known | set(limits) - set(Limits.__dataclass_fields__):
            raise InvalidRequest(
                f"template {path}: unknown key {name!r}; known are {', '.join(sorted(known))}", param=name
            )
        sized = {name: parse_size(value) if name.endswith("_bytes") else value for name, value in limits.items()}
        for name in ("preload", "layers", "binds"):
            table[name] = tuple(table.get(name, ()))
        return cls(**{"name": path.stem, **table, "limits": Limits(**sized)})

    def sources(self) -> list[str]:
        """Host folders a sandbox sees read-only: programs, the interpreter, what is on its path."""
        wanted = [*_programs(), sys.base_prefix, sys.prefix, *self.binds, *filter(None, [self.wheels])]
        real = sorted({os.path.normpath(path) for path in wanted})
        return [path for path in real if not any(path != other and path.startswith(other + "/") for other in real)]

    def variables(self) -> dict[str, str]:
        """Variables every process of its sandboxes begins with."""
        base = {"HOME": HOME, "USER": "user", "LOGNAME": "user", "PATH": _PATH, "LANG": "C.UTF-8", "SHELL": "/bin/bash"}
        one = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL", "NUMEXPR")}
        one["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # pandas loads pyarrow, whose allocator starts one
        return (
            base
            | one
            | {"PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg", "MPLCONFIGDIR": f"{HOME}/.config/matplotlib"}
            | (_PIP | {"PIP_FIND_LINKS": self.wheels} if self.wheels else {})
            | self.env
        )

    def spec(self) -> dict[str, Any]:
        """What the zygote needs to know, as plain values."""
        shown = f"\nimport sys\nsys.path.append({PACKAGES!r})" if self.wheels else ""
        return asdict(self) | {"variables": self.variables(), "warm": self.warm + shown}


def skeleton(template: Template, folder: Path) -> None:
    """Write the lowest layer of ``template``'s root file system into ``folder``: no file of the host but a few of
    /etc.
    """
    for name in _PLAIN:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in _OPEN:
        (folder / name).chmod(0o1777)
    if template.wheels:
        (folder / PACKAGES.lstrip("/")).mkdir(parents=True)
        (folder / PACKAGES.lstrip("/")).chmod(0o1777)
    for name in ("bin", "lib", "lib64", "sbin", "lib32", "libx32"):
        if Path("/", name).is_symlink():
            (folder / name).symlink_to(Path("/", name).readlink())
    for source in template.sources():
        (folder / source.lstrip("/")).mkdir(parents=True, exist_ok=True)
    etc = folder / "etc"
    for name in _ETC:
        if (found := Path("/etc", name)).is_file():
            shutil.copy(found, etc / name)
    for name in _ETC_TREES:
        if (found := Path("/etc", name)).is_dir():
            shutil.copytree(
                found, etc / name, symlinks=True, ignore=shutil.ignore_patterns("private"), dirs_exist_ok=True
            )
    (etc / "hosts").write_text("127.0.0.1 localhost sandbox\n::1 localhost\n")
    (etc / "hostname").write_text("sandbox\n")
    (etc / "resolv.conf").write_text("")
    (etc / "group").write_text("root:x:0:\nuser:x:1000:\n")
    (etc / "passwd").write_text(passwd(1000))
    for name, text in template.files.items():
        path = folder / HOME.lstrip("/") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def passwd(uid: int) -> str:
    """``/etc/passwd`` of a sandbox whose user has this id."""
    return f"root:x:0:0:root:/root:/bin/sh\nuser:x:{uid}:{uid}:user:{HOME}:/bin/bash\n"


def _programs() -> list[str]:
    """/usr, and the folders beside it that are not links into it."""
    return [
        "/usr",
        *(path for name in ("bin", "lib", "lib64", "sbin") if (path := f"/{name}") and _real_folder(Path(path))),
    ]


def _real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
