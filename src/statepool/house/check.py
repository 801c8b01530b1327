"""Reads the file and names every mistake in it, each with its line: not the first one only."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from statepool.cluster.launch import LOCAL_HOST
from statepool.core.config import parse_size
from statepool.core.errors import InvalidConfig
from statepool.engine.config import EngineConfig
from statepool.house.config import House, HouseFile
from statepool.serve.config import ClusterConfig, ServeConfig

__all__ = ["Mistake", "mistakes", "read"]

_PARTS = (EngineConfig, ClusterConfig, ServeConfig)
_BUILT = frozenset({"engine", "cluster", "chat_page"})
"""Fields of ``ServeConfig`` that are made of the others here."""

_SOCKET_PATH = 107
"""Most bytes in the path of a socket on Linux."""

Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong: where, and how to mend it."""

    line: int
    """Of the file, from 1; 0 where the file as a whole is meant."""
    key: str
    text: str

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.key}: {self.text}" if self.key else f"{place}{self.text}"


def read(path: Path) -> House:
    """The platform that ``path`` describes.

    Raises:
        InvalidConfig: something is wrong with it; the message has a line per mistake.
    """
    found = _Reading(path)
    if found.mistakes:
        raise InvalidConfig("\n".join(f"{path}: {mistake}" for mistake in found.mistakes), param="config")
    assert found.house is not None
    return found.house


def mistakes(path: Path, *, here: bool = True) -> list[Mistake]:
    """Everything that is wrong with a file, in its order; with ``here`` also what this machine cannot give it."""
    found = _Reading(path)
    wrong = list(found.mistakes)
    if here and found.house is not None:
        wrong += [Mistake(found.line(key), ".".join(map(str, key)), text) for key, text in _missing(found.house)]
    return sorted(wrong, key=lambda mistake: mistake.line)


class _Reading:
    """One file on its way to a ``House``."""

    def __init__(self, path: Path) -> None:
        self.mistakes: list[Mistake] = []
        self.house: House | None = None
        self._lines: dict[Key, int] = {}
        table = self._table(path)
        if table is None:
            return
        file = self._file(table)
        given = table.get("serve")
        serve = self._serve(given if isinstance(given, dict) else {})
        if file is not None and serve is not None and not self.mistakes:
            self.house = House(file=file, serve=serve)

    def line(self, key: Key) -> int:
        """Of the nearest part of ``key`` that is in the file."""
        while key and key not in self._lines:
            key = key[:-1]
        return self._lines.get(key, 0)

    def _wrong(self, key: Key, text: str) -> None:
        self.mistakes.append(Mistake(self.line(key), ".".join(map(str, key)), text))

    def _table(self, path: Path) -> dict[str, Any] | None:
        try:
            text = path.read_text(encoding="utf-8")
            node = yaml.compose(text)
            content = yaml.safe_load(text)
        except (OSError, UnicodeDecodeError) as error:
            self._wrong((), f"the file cannot be read: {error}")
            return None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            about = getattr(error, "problem", None) or str(error)
            self.mistakes.append(Mistake(mark.line + 1 if mark else 0, "", f"this is no YAML: {about}"))
            return None
        if content is None:
            return {}
        if not isinstance(content, dict):
            self._wrong((), f"the file must be a table of rooms, got {type(content).__name__}")
            return None
        self._lines = dict(_lines(node))
        return content

    def _file(self, table: dict[str, Any]) -> HouseFile | None:
        try:
            return HouseFile.model_validate(table)
        except ValidationError as error:
            for each in error.errors():
                key = tuple(each["loc"])
                if each["type"] == "extra_forbidden":
                    self._wrong(key, _unknown(key, _known(key)))
                else:
                    self._wrong(key, _said(each["msg"], each["input"]))
        return None

    def _serve(self, table: Mapping[str, Any]) -> ServeConfig | None:
        """The server's settings: each checked alone, then all together, until nothing more is found."""
        good: dict[str, Any] = {}
        known = {item.name: config for config in _PARTS for item in fields(config) if item.name not in _BUILT}
        for name, value in table.items():
            key = str(name).replace("-", "_")
            if key not in known:
                self._wrong(("serve", name), _unknown(("serve", name), known))
                continue
            try:
                given = parse_size(value) if key.endswith("_bytes") else value
                good[key] = TypeAdapter(_type_of(known[key], key)).validate_python(given)
            except ValidationError as error:
                self._wrong(("serve", name), _said(error.errors()[0]["msg"], value))
            except InvalidConfig as error:
                self._wrong(("serve", name), error.message)
        built: dict[type, Any] = {}
        for config in _PARTS:
            while config not in built:
                chosen = {name: value for name, value in good.items() if known[name] is config}
                try:
                    built[config] = config(**chosen)
                except InvalidConfig as error:
                    culprit = error.param if error.param in chosen else next(iter(chosen))
                    self._wrong(("serve", str(culprit)), error.message)
                    del good[str(culprit)]
        served: ServeConfig = replace(built[ServeConfig], engine=built[EngineConfig], cluster=built[ClusterConfig])
        return served


def _lines(node: Any, key: Key = ()) -> Iterator[tuple[Key, int]]:
    """The line of every key of a composed document, from 1."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield (*key, name.value), name.start_mark.line + 1
            yield from _lines(value, (*key, name.value))
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            yield (*key, place), value.start_mark.line + 1
            yield from _lines(value, (*key, place))


def _type_of(config: type, name: str) -> Any:
    from typing import get_type_hints

    return get_type_hints(config)[name]


def _said(message: str, value: Any) -> str:
    return f"{message[0].lower()}{message[1:]}, got {value!r}"


def _known(key: Key) -> Iterable[str]:
    """The keys that may stand where the last one of ``key`` does."""
    model: Any = HouseFile
    for part in key[:-1]:
        annotation = model.model_fields[part].annotation
        model = next(each for each in getattr(annotation, "__args__", (annotation,)) if hasattr(each, "model_fields"))
    return list(model.model_fields)


def _unknown(key: Key, known: Iterable[str]) -> str:
    near = get_close_matches(str(key[-1]), list(known), 1, 0.6)
    return f"unknown; did you mean {near[0]!r}?" if near else f"unknown; known are {', '.join(sorted(known))}"


def _missing(house: House) -> Iterator[tuple[Key, str]]:
    """What the file asks for and this machine has not."""
    file, serve = house.file, house.serve
    model = serve.engine.model
    # A name with one slash may be an id of the hub, which is asked when the model is loaded.
    local = model.count("/") != 1 or model.startswith((".", "/", "~"))
    if model != "tiny" and local and not Path(model).expanduser().exists():
        yield ("serve", "model"), f"there is no folder {model}"
    if file.store is not None and len(file.store.address.removeprefix("unix://")) > _SOCKET_PATH:
        yield ("store",), f"the socket {file.store.address} has a longer path than {_SOCKET_PATH}; set listen"
    if file.vector is not None and not file.vector.path.exists():
        yield ("vector", "path"), f"there is no index {file.vector.path}; make one with `statepool vector build`"
    for place, manifest in enumerate(file.sandbox.templates if file.sandbox else ()):
        if not manifest.is_file():
            yield ("sandbox", "templates", place), f"there is no manifest {manifest}"
    rooms = {"serve": serve.port} | {
        name: room.port for name, room in (("sandbox", file.sandbox), ("vector", file.vector)) if room is not None
    }
    taken: dict[int, str] = {}
    for name, port in rooms.items():
        if port and (other := taken.setdefault(port, name)) != name:
            yield (name, "port"), f"{port} is the port of {other} too; choose another"
        elif port and not _free(serve.host if name == "serve" else LOCAL_HOST, port):
            yield (name, "port"), f"{port} is taken here; choose another, or 0 for a free one"


def _free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
