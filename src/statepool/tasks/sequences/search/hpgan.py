"""HpGAN (arXiv 2012.05645): a GAN over Hopfield encodings of known codes.

The paper's text was not at hand; what its abstract fixes is here, the rest follows common practice: a code s of m signs
becomes the weights (s s' - I) / m of a Hopfield network that remembers it, the upper triangle of which a GAN learns;
a generated matrix is decoded by letting the network settle. It starts at the signs of the matrix's leading eigenvector:
a blend of several memories has rest points that belong to none of them, and random signs often end there. The global
sign is lost, and no objective here depends on it. The training set holds one form of each orbit: a net that has to tell
apart the 16 forms of every pair blends them, and few of its samples are any of them. Where no optimum is known the
training set are the best codes so far, and training repeats (elite bootstrapping). ``repair`` follows each decoded code
downhill by flips, and sets of codes by two flips at once where one does not help.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.objectives import Objective
from statepool.tasks.sequences.search.base import Batch, phases_of, rng
from statepool.tasks.sequences.search.nets import seeded, torch
from statepool.tasks.sequences.symmetry import representatives

__all__ = ["HpGan", "Network", "decode", "encode"]

_NOISE, _HIDDEN, _BATCH, _PENALTY, _CRITIC_STEPS = 32, 256, 64, 10.0, 3
_SWEEPS = 20
_TRAINING, _SAMPLES, _LIFE = 50, 256, 40
_MOST_SIGNS = 256
"""The net's width is the square of this over two."""


def encode(signs: np.ndarray) -> np.ndarray:
    """float32 [count, m (m - 1) / 2] of int8 [count, m]: the weights of a Hopfield network per row, times m."""
    m = signs.shape[1]
    upper = np.triu_indices(m, 1)
    weights: np.ndarray = (signs[:, upper[0]] * signs[:, upper[1]]).astype(np.float32)
    return weights


def decode(weights: np.ndarray, m: int, noise: np.random.Generator) -> np.ndarray:
    """int8 [count, m]: where each network comes to rest, one sign at a time, within 20 sweeps.

    It starts at the signs of its leading eigenvector; ``noise`` draws the order of the signs.
    """
    count = len(weights)
    upper = np.triu_indices(m, 1)
    full = np.zeros((count, m, m), np.float32)
    full[:, upper[0], upper[1]] = weights
    full += full.transpose(0, 2, 1)
    signs = np.where(np.linalg.eigh(full)[1][:, :, -1] < 0, -1, 1).astype(np.float32)
    for _ in range(_SWEEPS):
        before = signs.copy()
        for place in noise.permutation(m):
            field = np.einsum("cj,cj->c", full[:, place], signs)
            signs[:, place] = np.where(field == 0, signs[:, place], np.sign(field))
        if (before == signs).all():
            break
    return signs.astype(np.int8)


class Network:
    """Generator and discriminator (``gan``) or critic with gradient penalty (``wgan``) over encoded codes."""

    def __init__(self, m: int, loss: Literal["gan", "wgan"], seed: int) -> None:
        if loss not in ("gan", "wgan"):
            raise InvalidRequest(f"loss: '{loss}' is neither gan nor wgan", param="loss")
        if not 2 <= m <= _MOST_SIGNS:
            raise InvalidRequest(f"n: hpgan takes 2 to {_MOST_SIGNS} symbols in all codes together, not {m}", param="n")
        self.m, self.loss = m, loss
        self._random = torch.Generator().manual_seed(seed)
        size = m * (m - 1) // 2
        relu = torch.nn.LeakyReLU
        self.generator = torch.nn.Sequential(
            torch.nn.Linear(_NOISE, _HIDDEN), relu(0.2), torch.nn.Linear(_HIDDEN, _HIDDEN), relu(0.2),
            torch.nn.Linear(_HIDDEN, size), torch.nn.Tanh(),
        )  # fmt: skip
        self.judge = torch.nn.Sequential(
            torch.nn.Linear(size, _HIDDEN), relu(0.2), torch.nn.Linear(_HIDDEN, _HIDDEN), relu(0.2),
            torch.nn.Linear(_HIDDEN, 1),
        )  # fmt: skip
        seeded(self.generator, self._random)
        seeded(self.judge, self._random)
        rates: dict[str, Any] = {"lr": 2e-4, "betas": (0.5, 0.9)}
        self._steps = (
            torch.optim.Adam(self.generator.parameters(), **rates),
            torch.optim.Adam(self.judge.parameters(), **rates),
        )

    def train(self, encoded: np.ndarray, steps: int) -> None:
        """``steps`` steps of the generator on float32 [count, m (m - 1) / 2]."""
        known = torch.from_numpy(encoded)
        make, judge = self._steps
        softplus = torch.nn.functional.softplus
        for _ in range(steps):
            for _ in range(_CRITIC_STEPS if self.loss == "wgan" else 1):
                real = known[torch.randint(len(known), (_BATCH,), generator=self._random)]
                fake = self._made(_BATCH).detach()
                if self.loss == "wgan":
                    cost = self.judge(fake).mean() - self.judge(real).mean() + _PENALTY * self._penalty(real, fake)
                else:
                    cost = softplus(self.judge(fake)).mean() + softplus(-self.judge(real)).mean()
                judge.zero_grad()
                cost.backward()
                judge.step()
            opinion = self.judge(self._made(_BATCH))
            cost = -opinion.mean() if self.loss == "wgan" else softplus(-opinion).mean()
            make.zero_grad()
            cost.backward()
            make.step()

    def sample(self, count: int) -> np.ndarray:
        """float32 [count, m (m - 1) / 2] of new networks."""
        with torch.no_grad():
            made: np.ndarray = self._made(count).numpy()
        return made

    def _made(self, count: int) -> torch.Tensor:
        made: torch.Tensor = self.generator(torch.randn(count, _NOISE, generator=self._random))
        return made

    def _penalty(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        share = torch.rand(len(real), 1, generator=self._random)
        between = (share * real + (1 - share) * fake).requires_grad_()
        slope = torch.autograd.grad(self.judge(between).sum(), between, create_graph=True)[0]
        penalty: torch.Tensor = ((slope.norm(dim=1) - 1) ** 2).mean()
        return penalty


class HpGan:
    """The searcher: train on the elite, decode samples, keep the best, again."""

    name, alphabet = "hpgan", 2

    def __init__(self, loss: Literal["gan", "wgan"] = "wgan", *, repair: bool = False, elite: int = 256) -> None:
        self.loss, self.repair, self.elite = loss, repair, elite

    def batches(self, objective: Objective, n: int, seed: int, first: int) -> Iterator[Batch]:
        """A round is 50 steps of training and 256 samples; the net begins anew every 40 rounds, from random codes.

        A search that goes on in the middle of such 40 rounds repeats them from their first, since the net is in memory.
        """
        m = objective.codes * n
        number = first - first % _LIFE
        while True:
            if number % _LIFE == 0:
                network = Network(m, self.loss, seed * 1_000_003 + number)
                noise = rng(seed, number)
                elite = noise.choice(np.array([-1, 1], np.int8), (16 * self.elite, m))
                elite, costs = self._select(objective, elite, objective.costs(elite.reshape(-1, objective.codes, n)))
                evaluations = 16 * self.elite
            network.train(encode(elite), _TRAINING)
            found = decode(network.sample(_SAMPLES), m, noise)
            evaluations += len(found)
            if self.repair:
                # one flip away from a code of a set lie few better ones; a single code has too many pairs of flips
                found, spent = descend(objective, found, n, 2 if objective.codes > 1 else 1)
                evaluations += spent
            pool = np.concatenate([elite, found])
            fresh = objective.costs(found.reshape(-1, objective.codes, n))
            elite, costs = self._select(objective, pool, np.concatenate([costs, fresh]))
            if number >= first:
                yield Batch(number, 1, phases_of(elite[0].reshape(objective.codes, n)), float(costs[0]), evaluations)
                evaluations = 0
            number += 1

    def _select(self, objective: Objective, codes: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        plain = representatives(objective, codes.reshape(len(codes), objective.codes, -1)).reshape(codes.shape)
        _, places = np.unique(plain, axis=0, return_index=True)
        order = places[np.argsort(costs[places], kind="stable")][: self.elite]
        return plain[order], costs[order]


def descend(objective: Objective, signs: np.ndarray, n: int, flips: int = 2) -> tuple[np.ndarray, int]:
    """Follow each code of int8 [count, codes * n] downhill until neither a flip nor, with ``flips`` 2, two help.

    Answers the codes and the number of evaluations.
    """
    here, m = signs.copy(), signs.shape[1]
    costs = objective.costs(here.reshape(-1, objective.codes, n))
    evaluations = len(here)
    single = 1 - 2 * np.eye(m, dtype=np.int8)
    one, other = np.triu_indices(m, 1)
    steps = [single, single[one] * single[other]][:flips]
    for row in range(len(here)):
        wide = 0
        while wide < len(steps) and costs[row] != 0:  # a cost that can be 0 cannot be less
            near = here[row] * steps[wide]
            found = objective.costs(near.reshape(-1, objective.codes, n))
            evaluations += len(near)
            best = int(found.argmin())
            if found[best] < costs[row]:
                here[row], costs[row], wide = near[best], found[best], 0
            else:
                wide += 1
    return here, evaluations
