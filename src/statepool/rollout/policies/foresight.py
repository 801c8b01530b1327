"""Which order to serve in, found by playing the rest of the iteration forward under each.

The lengths that are not known are drawn from the posterior with a fixed seed, the cluster is made smaller in
proportion, and the simulator that drives this very scheduler tells how long the rest would take. A decision by
calculation, not by the clock: the same state gives the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from statepool.rollout.costs import StepTimes
from statepool.rollout.des import Simulation, Wanted
from statepool.rollout.lengths import Posterior
from statepool.rollout.policies.base import Policy
from statepool.rollout.sd import Speculation
from statepool.rollout.state import Group, State

__all__ = ["Foresight"]

_JOBS = 640
"""Jobs of a look ahead, at most: enough to tell orders apart, few enough to take a second or two."""
_GAIN = 0.05
"""What another order must gain to take over: less may be the luck of the drawn lengths."""
_COARSE = 4
"""Chunks of a look ahead are so many times as long."""


@dataclass(frozen=True, slots=True)
class Foresight:
    """Plays orders forward.

    Args:
        times: of a step.
        make: a policy for an order's name, for a simulation of its own.
        drafts: where drafts come from; None without.
        seed: of the drawn lengths.
    """

    times: StepTimes
    make: Callable[[str, int], Policy]
    drafts: str | None = None
    seed: int = 0

    def best(self, names: Sequence[str], state: State, posterior: Posterior, chunk: int) -> str:
        """The order whose rest ends first; the first of ``names`` unless another gains clearly."""
        up = state.up()
        open_ = [group for group in state.groups.values() if any(job.phase != "done" for job in group.jobs)]
        if not up or not open_:
            return names[0]
        wanted, begun, share = self._sample(open_, posterior, state, len(up))
        count = max(round(len(up) * share), 1)
        seats = max(instance.seats for instance in up)
        room = max(instance.capacity for instance in up)
        times = {}
        for name in names:
            speculation = Speculation(self.times, self.drafts) if self.drafts else None  # type: ignore[arg-type]
            world = Simulation(
                wanted, self.make(name, chunk * _COARSE), self.times, instances=count, capacity=room, seats=seats,
                speculation=speculation, begun=begun,
            )  # fmt: skip
            times[name] = world.run().seconds
        best = min(names, key=lambda name: (times[name], names.index(name)))
        return names[0] if times[names[0]] <= times[best] * (1 + _GAIN) else best

    def _sample(
        self, groups: Sequence[Group], posterior: Posterior, state: State, instances: int
    ) -> tuple[list[Wanted], list[int], float]:
        """Some whole groups with lengths as they may turn out, tokens each member has, and the share they are."""
        size = max(len(group.jobs) for group in groups)
        # As many as keep whole instances busy in the same proportion.
        parts = max(1, min(instances, round(instances * _JOBS / max(state.left, 1))))
        share = parts / instances
        every = max(len(groups) * share, 1)
        step = len(groups) / every
        chosen = [groups[int(i * step)] for i in range(int(every))][: max(_JOBS * 4 // size, 1)]
        rng = np.random.Generator(np.random.Philox(self.seed))
        wanted, begun = [], []
        for number, group in enumerate(chosen):
            common = float(rng.random())
            for job in group.jobs:
                draw = float(rng.random())
                if job.phase == "done":
                    continue
                length = job.generated + max(int(posterior.draw(job, draw, common)), 1)
                wanted.append(Wanted(number, job.index, job.prompt, job.limit, min(length, job.limit)))
                begun.append(min(job.generated, length - 1))
        return wanted, begun, share
