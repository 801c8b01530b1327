"""What a rollout leaves to learn from: token ids by who said them, never text to be tokenised again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from statepool.rollout.groups import Response, Segment
from statepool.tasks import Problem, Verdict
from statepool.train.prefix_tree import Sample

End = Literal["answer", "length", "turns", "lost"]
"""Over because the model answered; because its tokens, or its turns, were used up; or because its tools broke."""

_ENDS: dict[str, End] = {"stop": "answer", "length": "length", "turns": "turns", "lost": "lost"}
_WORTHLESS = {"length": "out of tokens or context before an answer", "turns": "no answer within the turns it had"}


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One conversation, from the prompt to the verdict: a response of a rollout and what it answers."""

    problem: Problem
    group: int
    prompt: tuple[int, ...]
    response: Response

    @property
    def end(self) -> End:
        """How it ended."""
        return _ENDS[self.response.finish_reason]

    @property
    def verdict(self) -> Verdict | None:
        """None where there was no judgement: a broken verifier or tool. Such a trajectory has no reward."""
        reason = _WORTHLESS.get(self.end)
        return self.response.verdict if reason is None else Verdict(0.0, reason)

    @property
    def segments(self) -> list[Segment]:
        """What was said behind the prompt, in order."""
        return self.response.segments

    @property
    def tokens(self) -> list[int]:
        """All token ids."""
        return [*self.prompt, *self.response.tokens]

    @property
    def turns(self) -> int:
        """Turns of the model."""
        return sum(segment.role == "model" for segment in self.segments)

    def sample(self) -> Sample:
        """For the trainer: what the model chose is to be learned, what the world said is not."""
        said = [segment.role == "model" for segment in self.segments for _ in segment.tokens]
        return Sample(self.tokens, [False] * len(self.prompt) + said, len(self.prompt))

    def logprobs(self) -> list[float]:
        """The engine's log-probabilities behind the prompt, 0 where the model did not choose."""
        return list(self.response.logprobs)


def counts(trajectories: Sequence[Trajectory]) -> dict[str, int]:
    """How often each fault happened, by its name."""
    found: dict[str, int] = {}
    for trajectory in trajectories:
        for fault in trajectory.response.faults:
            found[fault] = found.get(fault, 0) + 1
    return dict(sorted(found.items()))
