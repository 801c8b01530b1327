"""AlphaSeq (Shao, Liew, Wang, arXiv 1810.01218): codes written a few symbols a move by tree search with a net.

A game fills the symbols from the first to the last, four per move. Each move is chosen by PUCT (Silver et al. 2017)
from simulations whose leaves a net values and whose ends the objective does; the net learns the visits of each move
and the reward of each game. The reward is linear between the median of random codes (-1) and the best code so far
(+1): the anchors move with the search, as in the paper's segmented induction. The net is two dense layers instead of
the paper's convolutions, so that a processor core plays some games a second. Several games run side by side and their
leaves are valued in one batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.tasks.sequences.objectives import Objective
from statepool.tasks.sequences.search.base import Batch, phases_of, rng
from statepool.tasks.sequences.search.nets import seeded, torch

__all__ = ["AlphaSeq", "Net"]

_PER_MOVE, _HIDDEN = 4, 128
_ACTIONS = 1 << _PER_MOVE
_GAMES, _SIMULATIONS = 16, 48
_EXPLORATION, _ROOT_NOISE, _ALPHA = 1.0, 0.25, 0.1
_REMEMBERED, _UPDATES, _MINIBATCH = 12, 24, 64
"""Rounds whose games are learned from, steps of Adam after each round, positions of a step."""
_LIFE = 40
_MOST_SIGNS = 1024


class Net(torch.nn.Module):
    """Logits over the next four symbols and a value in [-1, 1], from planes [count, 3, symbols] (+1, -1, empty)."""

    def __init__(self, symbols: int, seed: int) -> None:
        super().__init__()
        linear = torch.nn.Linear
        self.body = torch.nn.Sequential(
            torch.nn.Flatten(), linear(3 * symbols, _HIDDEN), torch.nn.ReLU(), linear(_HIDDEN, _HIDDEN), torch.nn.ReLU()
        )
        self.policy, self.value = linear(_HIDDEN, _ACTIONS), linear(_HIDDEN, 1)
        seeded(self, torch.Generator().manual_seed(seed))
        self._adam = torch.optim.Adam(self.parameters(), lr=1e-3, weight_decay=1e-4)

    def judge(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Priors [count, 16] and values [count] of int8 [count, symbols], 0 where empty."""
        with torch.no_grad():
            logits, value = self(_planes(codes))
            return torch.softmax(logits, 1).numpy(), value.numpy()

    def forward(self, planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [count, 16], values [count]."""
        inner = self.body(planes)
        return self.policy(inner), torch.tanh(self.value(inner))[:, 0]

    def learn(self, codes: np.ndarray, visits: np.ndarray, rewards: np.ndarray) -> None:
        """One step towards the shares of visits (float32 [count, 16]) and the rewards (float32 [count])."""
        logits, value = self(_planes(codes))
        loss: Any = torch.nn.functional.cross_entropy(logits, torch.from_numpy(visits))
        loss += torch.nn.functional.mse_loss(value, torch.from_numpy(rewards))
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()


@dataclass(slots=True)
class _Node:
    """A visited prefix: per next move its prior, visits and summed value."""

    prior: np.ndarray
    visits: np.ndarray
    total: np.ndarray

    def best(self) -> int:
        mean = self.total / np.maximum(self.visits, 1)
        spread = _EXPLORATION * self.prior * np.sqrt(self.visits.sum() + 1) / (1 + self.visits)
        return int((mean + spread).argmax())


@dataclass(frozen=True)
class _Position:
    """What the net learns from: symbols so far, shares of visits, what the finished code cost."""

    code: np.ndarray
    visits: np.ndarray
    cost: float


class _Play:
    """One round of games of one objective, with the best code seen in any simulation."""

    def __init__(self, objective: Objective, n: int, net: Net, noise: np.random.Generator) -> None:
        self.objective, self.n, self.net, self.noise = objective, n, net, noise
        self.symbols = objective.codes * n
        self.moves = -(-self.symbols // _PER_MOVE)
        drawn = noise.choice(np.array([-1, 1], np.int8), (64, self.symbols))
        costs = self._costs(drawn)
        self.evaluations, self.median = 64, float(np.median(costs))
        self.best, self.cost = drawn[costs.argmin()], float(costs.min())

    def game(self) -> list[_Position]:
        """Play a round of games side by side."""
        trees: list[dict[tuple[int, ...], _Node]] = [{} for _ in range(_GAMES)]
        roots: list[tuple[int, ...]] = [()] * _GAMES
        seen: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(_GAMES)]
        for move in range(self.moves):
            for turn in range(_SIMULATIONS):
                self._simulate(trees, roots)
                if turn == 0:  # now every root is a node
                    for tree, root in zip(trees, roots, strict=True):
                        node = tree[root]
                        drawn = self.noise.dirichlet(np.full(_ACTIONS, _ALPHA))
                        node.prior = (1 - _ROOT_NOISE) * node.prior + _ROOT_NOISE * drawn
            for game, (tree, root) in enumerate(zip(trees, roots, strict=True)):
                visits = tree[root].visits
                share = visits / visits.sum()
                # the first third of the moves is drawn, the rest taken: games differ, and end well
                chosen = self.noise.choice(_ACTIONS, p=share) if move < self.moves / 3 else int(visits.argmax())
                seen[game].append((self._filled(root), share.astype(np.float32)))
                roots[game] = (*root, int(chosen))
        costs = self._rate(np.array([self._filled(root) for root in roots]))
        return [
            _Position(code, share, cost) for game, cost in zip(seen, costs, strict=True) for code, share in game
        ]  # fmt: skip

    def reward(self, costs: np.ndarray) -> np.ndarray:
        """-1 at the median of random codes or worse, +1 at the best code so far, linear between."""
        span = max(self.median - self.cost, 1e-9)
        found: np.ndarray = np.clip(1 - 2 * (costs - self.cost) / span, -1, 1).astype(np.float32)
        return found

    def _simulate(self, trees: list[dict[tuple[int, ...], _Node]], roots: list[tuple[int, ...]]) -> None:
        """One descent per game to a new prefix or a full code, whose value goes back up its path."""
        paths, ends = [], []
        for tree, root in zip(trees, roots, strict=True):
            place, path = root, []
            while (node := tree.get(place)) is not None:
                action = node.best()
                path.append((node, action))
                place = (*place, action)
            paths.append(path)
            ends.append(place)
        codes = np.array([self._filled(place) for place in ends])
        full = np.array([len(place) == self.moves for place in ends])
        priors, values = self.net.judge(codes)
        if full.any():
            values = values.copy()
            values[full] = self.reward(self._rate(codes[full]))
        for game, (path, place) in enumerate(zip(paths, ends, strict=True)):
            if not full[game]:
                trees[game][place] = _Node(priors[game], np.zeros(_ACTIONS), np.zeros(_ACTIONS))
            for node, action in path:
                node.visits[action] += 1
                node.total[action] += values[game]

    def _filled(self, place: tuple[int, ...]) -> np.ndarray:
        """int8 [moves * 4]: the symbols of these moves, then 0."""
        code = np.zeros(self.moves * _PER_MOVE, np.int8)
        for move, action in enumerate(place):
            for bit in range(_PER_MOVE):
                code[move * _PER_MOVE + bit] = 1 - 2 * (action >> bit & 1)
        return code

    def _rate(self, codes: np.ndarray) -> np.ndarray:
        codes = codes[:, : self.symbols]  # what the last move writes past the end is dropped
        costs = self._costs(codes)
        self.evaluations += len(codes)
        if costs.min() < self.cost:
            self.best, self.cost = codes[costs.argmin()], float(costs.min())
        return costs

    def _costs(self, codes: np.ndarray) -> np.ndarray:
        costs = self.objective.costs(codes.reshape(len(codes), self.objective.codes, self.n))
        # a ratio that rounding left undecided is finite but very large: the anchors must stay numbers
        bounded: np.ndarray = np.maximum(costs, -1e30)
        return bounded


class AlphaSeq:
    """The searcher: play, learn from the games, again."""

    name, alphabet = "alphaseq", 2

    def batches(self, objective: Objective, n: int, seed: int, first: int) -> Iterator[Batch]:
        """A round is 16 games and the learning after them; the net begins anew every 40 rounds.

        A search that goes on in the middle of such 40 rounds repeats them from their first, since the net is in memory.

        Raises:
            InvalidRequest: The codes have more than 1,024 symbols together, or a code fewer than 2.
        """
        if n < 2 or objective.codes * n > _MOST_SIGNS:
            raise InvalidRequest(f"n: alphaseq takes 2 to {_MOST_SIGNS} symbols in all codes together", param="n")
        number = first - first % _LIFE
        while True:
            if number % _LIFE == 0:
                noise = rng(seed, number)
                symbols = -(-objective.codes * n // _PER_MOVE) * _PER_MOVE
                net = Net(symbols, seed * 1_000_003 + number)
                play = _Play(objective, n, net, noise)
                memory: deque[list[_Position]] = deque(maxlen=_REMEMBERED)
            memory.append(play.game())
            self._learn(net, play, [position for game in memory for position in game])
            if number >= first:
                phases = phases_of(play.best.reshape(objective.codes, n))
                yield Batch(number, 1, phases, play.cost, play.evaluations)
                play.evaluations = 0
            number += 1

    def _learn(self, net: Net, play: _Play, known: list[_Position]) -> None:
        codes = np.array([position.code for position in known])
        visits = np.array([position.visits for position in known])
        rewards = play.reward(np.array([position.cost for position in known]))
        for _ in range(_UPDATES):
            some = play.noise.integers(0, len(known), _MINIBATCH)
            net.learn(codes[some], visits[some], rewards[some])


def _planes(codes: np.ndarray) -> torch.Tensor:
    planes = np.stack([codes == 1, codes == -1, codes == 0], 1).astype(np.float32)
    return torch.from_numpy(planes)
