"""What a rollout is asked for and what it answers: groups of prompts, and their responses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal

from statepool.core.errors import InvalidRequest
from statepool.engine.request import Request, SamplingParams
from statepool.tasks import Verdict

__all__ = ["ChunkRecord", "Group", "Response", "Segment", "request_id"]

_SEPARATOR = "/"
_PARAMS = SamplingParams(max_tokens=256, logprobs=0)


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt to be answered ``size`` times.

    Args:
        id: unique in an iteration; with the rollout's seed it keys the noise of all members.
        prompt: token ids.
        size: responses wanted (G).
        params: how tokens are chosen; ``max_tokens`` bounds each response, ``seed`` is set by the rollout.

    Raises:
        InvalidRequest: an empty prompt, ``size`` or ``max_tokens`` below 1, or an id that holds a slash.
    """

    id: str
    prompt: tuple[int, ...]
    size: int = 8
    params: SamplingParams = _PARAMS

    def __post_init__(self) -> None:
        if not self.id or _SEPARATOR in self.id:
            raise InvalidRequest(f"a group's id must be a name without {_SEPARATOR!r}, got {self.id!r}", param="id")
        if not self.prompt:
            raise InvalidRequest(f"group {self.id!r} has an empty prompt; give at least one token", param="prompt")
        if self.size < 1:
            raise InvalidRequest(f"group {self.id!r}: size must be at least 1, got {self.size}", param="size")
        if self.params.max_tokens < 1:
            raise InvalidRequest(f"group {self.id!r}: max_tokens must be at least 1", param="max_tokens")

    def seed(self, rollout_seed: int) -> int:
        """The 64-bit noise key of this group in a rollout: members differ by their index alone."""
        digest = blake2b(f"{rollout_seed}:{self.id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def request(self, index: int, rollout_seed: int) -> Request:
        """Member ``index`` as a request of the engine; its tokens are a function of (seed, group, index) alone."""
        params = replace(self.params, seed=self.seed(rollout_seed))
        return Request(request_id(self.id, index), self.prompt, params, index=index)


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """A stretch of one response on one instance: output tokens ``start`` to ``stop``, seconds since the beginning."""

    instance: int
    began: float
    ended: float
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Output tokens of one speaker; ``logprobs`` are empty for the world's, which nobody sampled."""

    role: Literal["model", "world"]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """One finished member of a group.

    Attributes:
        tokens: ids of the output, end tokens and what the world said included.
        logprobs: of the distribution each token was sampled from, 0 for the world's tokens; empty unless
            ``params.logprobs`` was set.
        text: what the model said.
        finish_reason: ``stop``, ``length``; of conversations also ``turns`` and ``lost``, see ``tools.Tools``.
        version: of the weights that made it.
        drafted, accepted: draft tokens verified and found right.
        chunks: where its parts were made.
        said: stretches of ``tokens``, from and to, that the world said.
        verdict: of the world; None without one.
        faults: what went wrong in the world, by name.
        calls: seconds at which the world was asked and answered.
    """

    group: str
    index: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: str
    version: str = "0"
    drafted: int = 0
    accepted: int = 0
    chunks: tuple[ChunkRecord, ...] = ()
    said: tuple[tuple[int, int], ...] = ()
    verdict: Verdict | None = None
    faults: tuple[str, ...] = ()
    calls: tuple[tuple[float, float], ...] = ()

    @property
    def segments(self) -> list[Segment]:
        """The output by who said it, in order."""
        found: list[Segment] = []
        at = 0
        for start, stop in (*self.said, (len(self.tokens), len(self.tokens))):
            if start > at:
                found.append(Segment("model", self.tokens[at:start], self.logprobs[at:start]))
            if stop > start:
                found.append(Segment("world", self.tokens[start:stop]))
            at = stop
        return found

    @property
    def chosen(self) -> int:
        """Tokens the model chose."""
        return len(self.tokens) - sum(stop - start for start, stop in self.said)


def request_id(group: str, index: int) -> str:
    """The name of a group's member in engines and logs."""
    return f"{group}{_SEPARATOR}{index}"
