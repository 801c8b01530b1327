"""Snapshots on disk: files and names of a sandbox, which outlive its manager and can be listed and deleted.

A moment in memory (``Sandbox.snapshot``) keeps everything and lives as long as its slot. One on disk keeps the files
that a tenant can write, and the names of its kernel that can be pickled; the manifest tells which names were lost and
why.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statepool.core.errors import Corruption, InvalidRequest, NotFound
from statepool.sandbox.errors import SandboxError
from statepool.sandbox.template import PACKAGES

if TYPE_CHECKING:
    from statepool.sandbox.execution import Execution
    from statepool.sandbox.sandbox import Sandbox

__all__ = ["Archive", "Saved"]

_VERSION = 1
_TAR, _NAMES = "/tmp/.statepool-archive.tar", "/tmp/.statepool-names"  # noqa: S108  # inside a sandbox
_SECONDS = 600.0
_PACK = (
    f"set -o pipefail; /usr/bin/find tmp var/tmp run/shm $(ls -d .{PACKAGES} 2>/dev/null)"
    f" -mindepth 1 -maxdepth 1 -uid $(id -u) ! -path {_TAR[1:]} -print0 |"
    f" /bin/tar --create --file {_TAR} --sparse --xattrs home/user --null --files-from -"
)
_UNPACK = f"/bin/tar --extract --file {_TAR} --xattrs; code=$?; /bin/rm -f {_TAR}; exit $code"
_KEEP = f"""
def _statepool_keep(space):
    import io, json, os, pickle, types
    try:
        from cloudpickle import Pickler
    except ImportError:
        class Pickler(pickle.Pickler):
            def reducer_override(self, value):
                if isinstance(value, (type, types.FunctionType)) and value.__module__ == space['__name__']:
                    raise pickle.PicklingError('it is defined in a cell, and cloudpickle is not installed')
                return NotImplemented
    def dump(value):
        data = io.BytesIO()
        Pickler(data, 5).dump(value)
        return data.getvalue()
    kept, modules, lost = {{}}, {{}}, {{}}
    for name, value in space.items():
        if name.startswith('_') or name in ('In', 'Out', 'exit', 'quit', 'get_ipython'):
            continue
        if (getattr(value, '__module__', None) or '').startswith('statepool.sandbox.inside'):
            continue  # the kernel's own, which every kernel has
        if isinstance(value, types.ModuleType):
            modules[name] = value.__name__
            continue
        try:
            dump(value)
            kept[name] = value
        except Exception as error:
            lost[name] = f'{{type(error).__name__}}: {{error}}'[:200]
    with open('{_NAMES}', 'wb') as file:
        file.write(dump((kept, modules, os.getcwd())))
    print(json.dumps(lost))
_statepool_keep(globals())
del _statepool_keep"""
_BRING = f"""
def _statepool_bring(space):
    import importlib, os, pickle
    with open('{_NAMES}', 'rb') as file:
        kept, modules, folder = pickle.load(file)
    space.update(kept)
    space.update({{name: importlib.import_module(module) for name, module in modules.items()}})
    os.chdir(folder)
    os.unlink('{_NAMES}')
_statepool_bring(globals())
del _statepool_bring"""


@dataclass(frozen=True, slots=True)
class Saved:
    """What an archive knows of one sandbox: ``made`` in seconds since 1970, names that were ``lost`` and why."""

    name: str
    template: str
    made: float
    length: int
    sha256: str
    lost: dict[str, str]
    version: int = _VERSION


class Archive:
    """A folder of saved sandboxes, each a folder with ``manifest.json`` and ``files.tar``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def save(self, sandbox: Sandbox, name: str) -> Saved:
        """Keep a sandbox, between cells; it goes on. Needs room for its files once more, inside it.

        Raises:
            InvalidRequest: ``name`` is no name, or is taken.
            SandboxError: its files or names could not be read.
        """
        final = self._path(name)
        if final.exists():
            raise InvalidRequest(f"archive: there is a {name!r} already; delete it first", param="name")
        lost = json.loads(_done(sandbox.run_code(_KEEP, timeout=_SECONDS)).logs.stdout)
        packed = sandbox.commands.run(_PACK, cwd="/", timeout=_SECONDS)
        data = sandbox.files.read(_TAR) if packed.exit_code == 0 else b""
        sandbox.commands.run(f"/bin/rm -f {_TAR} {_NAMES}")
        if packed.exit_code:
            raise SandboxError(f"archive: its files could not be read: {packed.stderr.strip()[-300:]}")
        digest = hashlib.sha256(data).hexdigest()
        saved = Saved(name, sandbox.template, time.time(), len(data), digest, lost)
        made = self.folder / f".{secrets.token_hex(6)}"  # a whole one, or none: it gets its name when it is on disk
        made.mkdir(mode=0o700)
        for part, content in (("files.tar", data), ("manifest.json", json.dumps(asdict(saved)).encode())):
            with (made / part).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        made.rename(final)
        return saved

    def list(self) -> list[Saved]:
        """All of them, the oldest first.

        Raises:
            Corruption: a manifest is damaged.
        """
        names = [path.name for path in self.folder.iterdir() if not path.name.startswith(".")]
        return sorted(map(self._read, names), key=lambda saved: saved.made)

    def delete(self, name: str) -> None:
        """Forget one; a damaged one, too.

        Raises:
            NotFound: there is none of this name.
        """
        path = self._path(name)
        gone = self.folder / f".{secrets.token_hex(6)}"
        try:
            path.rename(gone)
        except FileNotFoundError:
            raise NotFound(f"archive: there is no {name!r}", param="name") from None
        shutil.rmtree(gone)

    def restore(self, name: str, **options: Any) -> Sandbox:
        """A new sandbox with these files and names; ``options`` are those of ``Sandbox``, without the template.

        Raises:
            NotFound: there is none of this name.
            Corruption: it is damaged.
        """
        from statepool.sandbox.sandbox import Sandbox

        saved = self._read(name)
        data = (self._path(name) / "files.tar").read_bytes()
        if hashlib.sha256(data).hexdigest() != saved.sha256:
            raise Corruption(f"archive {name}: its files are not those that were saved; delete it")
        made = Sandbox(saved.template, **options)
        try:
            made.files.write(_TAR, data)
            unpacked = made.commands.run(_UNPACK, cwd="/", timeout=_SECONDS)
            if unpacked.exit_code:
                raise SandboxError(f"archive {name}: {unpacked.stderr.strip()[-300:]}")
            _done(made.run_code(_BRING, timeout=_SECONDS))
        except BaseException:
            made.close()
            raise
        return made

    def _path(self, name: str) -> Path:
        if not name or name.startswith(".") or set("/\0") & set(name):
            raise InvalidRequest(f"archive: {name!r} is no name; use letters, digits and dashes", param="name")
        return self.folder / name

    def _read(self, name: str) -> Saved:
        try:
            saved = Saved(**json.loads((self._path(name) / "manifest.json").read_bytes()))
        except FileNotFoundError:
            raise NotFound(f"archive: there is no {name!r}", param="name") from None
        except (ValueError, TypeError) as error:
            raise Corruption(f"archive {name}: its manifest is damaged ({error}); delete it") from None
        if saved.version != _VERSION:
            raise Corruption(f"archive {name}: it has version {saved.version}, this program reads {_VERSION}")
        return saved


def _done(execution: Execution) -> Execution:
    if execution.error is not None:
        raise SandboxError(f"archive: {execution.error.name}: {execution.error.value}")
    return execution
