"""Settings from a file, the environment and the command line, checked against dataclasses.

A room describes its settings once, as a dataclass (``EngineConfig``, ``ServeConfig``). ``Settings`` gathers values
for the fields of several of them from the weakest source to the strongest: the dataclass's default, a YAML or TOML
file, the environment (``STATEPOOL_PORT``), the command line. A key that no dataclass has is an error that names the
nearest one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from statepool.core.errors import InvalidConfig

__all__ = ["PREFIX", "Settings", "parse_size"]

PREFIX = "STATEPOOL_"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*?)b?", re.IGNORECASE)
_TYPO = 0.8
_SIZES = ("_bytes", "_budget")
"""Settings whose names end so are sizes."""

Config = TypeVar("Config")


class _Value(NamedTuple):
    value: Any
    source: str


class Settings:
    """Values by field name, each with where it came from. ``build`` turns them into one dataclass."""

    def __init__(self, configs: Iterable[type], ignore: Iterable[str] = ()) -> None:
        """Accept the fields of all dataclasses in ``configs``, except the names in ``ignore``."""
        skipped = set(ignore)
        self._known = {item.name for config in configs for item in fields(config)} - skipped
        self._values: dict[str, _Value] = {}

    def read_file(self, path: Path) -> None:
        """Take the keys of a ``.toml``, ``.yaml`` or ``.yml`` file.

        Raises:
            InvalidConfig: the file is missing, unreadable, not a table, or holds an unknown key.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidConfig(f"settings file {str(path)!r} cannot be read: {error}", param="config") from None
        for key, value in _parse(path, text).items():
            if key not in self._known:
                raise InvalidConfig(self._unknown(key, str(path), self._known), param=key)
            self._values[key] = _Value(value, str(path))

    def read_environment(self, environ: Mapping[str, str]) -> None:
        """Take ``STATEPOOL_NAME`` for every known name. Other variables with the prefix belong to others.

        Raises:
            InvalidConfig: a variable that looks like a misspelt setting.
        """
        for variable, value in environ.items():
            if not variable.startswith(PREFIX):
                continue
            key = variable.removeprefix(PREFIX).lower()
            if key in self._known:
                self._values[key] = _Value(value, variable)
            elif get_close_matches(key, self._known, 1, _TYPO):
                names = {PREFIX + name.upper() for name in self._known}
                raise InvalidConfig(self._unknown(variable, "the environment", names), param=key)

    def read_flags(self, flags: Mapping[str, Any]) -> None:
        """Take values of the command line by field name; ``None`` means the flag was not given."""
        for key, value in flags.items():
            if value is not None and key in self._known:
                self._values[key] = _Value(value, "--" + key.replace("_", "-"))

    def source(self, key: str) -> str | None:
        """Where the value of ``key`` came from; ``None`` if it is the default."""
        found = self._values.get(key)
        return found.source if found else None

    def build(self, config: type[Config], **fixed: Any) -> Config:
        """Make a ``config`` of the values that are its fields; ``fixed`` are taken as they are.

        Raises:
            InvalidConfig: a value of the wrong type or out of range; the message names key and source.
        """
        names = [item.name for item in fields(config)]  # type: ignore[arg-type]
        given: dict[str, Any] = {}
        for name in names:
            found = self._values.get(name)
            if name in fixed:
                given[name] = fixed[name]
            elif found is not None:
                given[name] = _size(name, found) if name.endswith(_SIZES) else found.value
        try:
            return TypeAdapter(config).validate_python(given)
        except ValidationError as error:
            first = error.errors()[0]
            key = str(first["loc"][0]) if first["loc"] else config.__name__
            source = self.source(key) or "a default"
            raise InvalidConfig(
                f"{key} (from {source}): {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}", param=key
            ) from None

    @staticmethod
    def _unknown(key: str, source: str, known: Iterable[str]) -> str:
        near = get_close_matches(key, known, 1, 0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
        return f"unknown setting {key!r} in {source}; {hint}"


def parse_size(text: str | int) -> int:
    """Bytes of a size: ``4096``, ``"512MB"`` (powers of ten), ``"2GiB"`` (powers of two), ``"1.5g"``.

    Raises:
        InvalidConfig: not a size.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    found = _SIZE.fullmatch(str(text).strip())
    unit = found[2].lower() if found else None
    if found is None or unit not in _UNITS:
        raise InvalidConfig(f"{text!r} is not a size; write bytes or a number with KB, MB, GB, KiB, MiB, GiB or TiB")
    return int(float(found[1]) * _UNITS[unit])


def _size(name: str, found: _Value) -> int:
    try:
        return parse_size(found.value)
    except InvalidConfig as error:
        raise InvalidConfig(f"{name} (from {found.source}): {error.message}", param=name) from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    table: Any
    if path.suffix == ".toml":
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InvalidConfig(f"{path} is not valid TOML: {error}", param="config") from None
    elif path.suffix in (".yaml", ".yml"):
        import yaml

        try:
            table = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InvalidConfig(f"{path} is not valid YAML: {' '.join(str(error).split())}", param="config") from None
    else:
        raise InvalidConfig(f"settings file {str(path)!r} must end in .toml, .yaml or .yml", param="config")
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise InvalidConfig(f"{path} must hold one table of settings, got {type(table).__name__}", param="config")
    return {str(key).replace("-", "_"): value for key, value in table.items()}
