"""What a rollout leaves: segments of token ids with who said them, never text that would have to be tokenised again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from statepool.tasks import Problem, Verdict
from statepool.train.prefix_tree import Sample

End = Literal["answer", "length", "turns", "lost"]
"""Over because the model answered; because its tokens, or its turns, were used up; or because its tools broke."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of one speaker, in order. ``logprobs`` are the engine's and empty for what the model did not choose."""

    role: Literal["prompt", "model", "world"]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    version: str = ""
    """The weights that chose the tokens."""


@dataclass(slots=True)
class Trajectory:
    """One conversation, from the prompt to the verdict."""

    problem: Problem
    group: int
    member: int
    segments: list[Segment] = field(default_factory=list)
    end: End = "answer"
    verdict: Verdict | None = None
    """None where there was no judgement: a broken verifier or tool. Such a trajectory has no reward."""
    faults: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """All token ids."""
        return [token for segment in self.segments for token in segment.tokens]

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        return len(self.segments[0].tokens)

    @property
    def chosen(self) -> int:
        """Tokens the model chose."""
        return sum(len(segment.tokens) for segment in self.segments if segment.role == "model")

    @property
    def turns(self) -> int:
        """Turns of the model."""
        return sum(segment.role == "model" for segment in self.segments)

    def stop(self, end: End, reason: str) -> None:
        """Over without an answer, which is worth nothing."""
        self.end, self.verdict = end, Verdict(0.0, reason)

    def sample(self) -> Sample:
        """For the trainer: what the model chose is to be learned, what the world said is not."""
        learn = [segment.role == "model" for segment in self.segments for _ in segment.tokens]
        return Sample(self.tokens, learn, self.prompt_len)

    def logprobs(self) -> list[float]:
        """The engine's log-probabilities behind the prompt, 0 where the model did not choose."""
        return [
            value
            for segment in self.segments[1:]
            for value in (segment.logprobs if segment.role == "model" else [0.0] * len(segment.tokens))
        ]


def counts(trajectories: Sequence[Trajectory]) -> dict[str, int]:
    """How often each fault happened, by its name."""
    found: dict[str, int] = {}
    for trajectory in trajectories:
        for fault in trajectory.faults:
            found[fault] = found.get(fault, 0) + 1
    return dict(sorted(found.items()))
