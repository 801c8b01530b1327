"""Iterations to simulate: lengths with a share that a group has in common, or from a recorded trace."""

from __future__ import annotations

import numpy as np

from statepool.core.errors import InvalidConfig
from statepool.rollout.costs import Workload
from statepool.rollout.des import Wanted

__all__ = ["draw", "lognormal_lengths"]


def lognormal_lengths(
    groups: int, size: int, mean: float, most: int, sigma: float, correlation: float, seed: int
) -> np.ndarray:
    """Lengths int64 ``[groups, size]``: log L = mu + sigma (sqrt(rho) z_group + sqrt(1 - rho) z_member).

    They are cut at ``most``. ``mu`` is chosen so that the mean of this draw is ``mean``; ``correlation`` is rho, the
    share of the variance of log L that lies between groups.

    Raises:
        InvalidConfig: a correlation outside 0 to 1, or a mean that the cut does not allow.
    """
    if not 0 <= correlation <= 1:
        raise InvalidConfig(f"correlation must be between 0 and 1, got {correlation}", param="correlation")
    if not 1 <= mean < most:
        raise InvalidConfig(f"mean must be between 1 and {most}, got {mean}", param="mean")
    rng = np.random.Generator(np.random.Philox(seed))
    noise = sigma * (
        np.sqrt(correlation) * rng.standard_normal((groups, 1))
        + np.sqrt(1 - correlation) * rng.standard_normal((groups, size))
    )
    low, high = np.log(mean) - 6 * sigma - 3, np.log(most) + 6 * sigma
    for _ in range(60):
        middle = (low + high) / 2
        if np.minimum(np.exp(middle + noise), most).mean() < mean:
            low = middle
        else:
            high = middle
    lengths: np.ndarray = np.clip(np.rint(np.exp(high + noise)), 1, most).astype(np.int64)
    return lengths


def draw(workload: Workload, correlation: float, seed: int) -> list[Wanted]:
    """One iteration of a published workload."""
    lengths = lognormal_lengths(
        workload.groups, workload.size, workload.mean, workload.most, workload.sigma, correlation, seed
    )
    return [
        Wanted(group, index, workload.prompt, workload.most, int(lengths[group, index]))
        for group in range(workload.groups)
        for index in range(workload.size)
    ]
