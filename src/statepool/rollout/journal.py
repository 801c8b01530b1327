"""The request buffer of an iteration on disk: what every response has so far outlives the controller.

A record per report, in a log of ``statepool.store``. Resuming an iteration reads it: finished responses are there,
the others go on behind their last recorded token, and since noise is keyed by position they go on with the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from statepool.core.errors import InvalidRequest
from statepool.rollout.groups import Group
from statepool.tasks import Verdict

__all__ = ["Journal", "Kept"]


@dataclass(slots=True)
class Kept:
    """What is recorded of one response."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    drafted: int = 0
    accepted: int = 0
    said: list[tuple[int, int]] = field(default_factory=list)
    """Stretches of ``tokens`` that the world said."""
    verdict: Verdict | None = None
    faults: tuple[str, ...] = ()

    @property
    def chosen(self) -> int:
        """Tokens that the model chose."""
        return len(self.tokens) - sum(stop - start for start, stop in self.said)

    def record(self, name: str) -> tuple[Any, ...]:
        """All of it, for a journal that has nothing of it yet."""
        verdict = None if self.verdict is None else (self.verdict.score, self.verdict.reason)
        world = (self.said, verdict, self.faults)
        return (name, 0, self.tokens, self.logprobs, self.text, self.finish, self.drafted, self.accepted, world)


class Journal:
    """One iteration in the store at ``folder``. Use it as a context manager.

    Args:
        folder: of the store; made if it is not there.
        groups, seed, version: what the iteration is; an unfinished one of other content is refused.

    Raises:
        InvalidRequest: the folder holds an unfinished iteration of other groups, seed or weights.
        StoreLocked: another controller has it open.
    """

    def __init__(self, folder: Path, groups: Sequence[Group], seed: int, version: str) -> None:
        from statepool import store

        self._store = store.open(folder, durability="process")
        self._log = self._store.log("rollout", values="msgpack")
        self._about = self._store.dict("iteration", keys="str", values="msgpack")
        self.kept: dict[str, Kept] = {}
        name = _fingerprint(groups, seed, version)
        known = self._about.get("name")
        try:
            if known is None:
                self._about["name"] = name
            elif known != name:
                raise InvalidRequest(
                    f"{folder} holds an unfinished iteration of other groups, seed or weights; name another folder",
                    param="journal",
                )
            for _, record in self._log.read():
                self._take(*record)
        except BaseException:
            self._store.close()
            raise

    def add(self, records: Sequence[tuple[Any, ...]]) -> None:
        """Keep what some responses have gained; durable on return.

        Each is (id, start, tokens, logprobs, text, finish, drafted, accepted), and of a conversation, which is kept
        when it is over, also what the world said: (stretches, verdict, faults).
        """
        self._log.append(list(records))

    def clear(self) -> None:
        """The iteration is over and its responses are where they belong: forget it."""
        self._log.truncate(len(self._log) + (next(iter(self._log.read()), (0, None))[0]))
        del self._about["name"]

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, *records: Any) -> None:
        for name, start, tokens, logprobs, text, finish, drafted, accepted, *world in records:
            kept = self.kept.setdefault(name, Kept())
            if start != len(kept.tokens):
                raise InvalidRequest(f"the journal misses tokens of {name} before {start}", param="journal")
            kept.tokens += tokens
            kept.logprobs += logprobs
            kept.text += text
            kept.finish = finish
            kept.drafted += drafted
            kept.accepted += accepted
            for said, verdict, faults in world:
                kept.said = [(first, last) for first, last in said]
                kept.verdict = None if verdict is None else Verdict(*verdict)
                kept.faults = tuple(faults)


def _fingerprint(groups: Sequence[Group], seed: int, version: str) -> str:
    encoded = msgspec.json.encode([seed, version, list(groups)], order="deterministic")
    return blake2b(encoded, digest_size=16).hexdigest()
