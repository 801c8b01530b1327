"""Other guesses beside a sequence's draft, verified in the same step: each in blocks of its own behind the common past.

A branch is computed as a sequence would be that had its tokens, so what is chosen has the bits it has without. If a
branch holds where the draft did not, its blocks become the sequence's.
"""

from __future__ import annotations

from dataclasses import dataclass

from statepool.engine.runner import Runner
from statepool.engine.sequence import Sequence
from statepool.kv import BlockPool
from statepool.kv.layout import BLOCK_SIZE

__all__ = ["Branch", "fork", "settle"]


@dataclass(slots=True)
class Branch:
    """A guess at what follows ``sequence``; ``blocks`` hold the KV from the block of its last token on."""

    sequence: Sequence
    guess: list[int]
    first: int
    """Position of the last token of the sequence, which is computed here again."""
    blocks: list[int]
    won: bool = False

    @property
    def part(self) -> tuple[list[int], int, list[int]]:
        """What ``Batch.build`` takes."""
        shared = self.sequence.table.blocks[: self.first // BLOCK_SIZE]
        return [self.sequence.tokens[-1], *self.guess], self.first, shared + self.blocks

    def holds(self, count: int) -> bool:
        """Whether the sequence has gained just the first ``count`` tokens of the guess."""
        tokens = self.sequence.tokens
        return len(tokens) - 1 == self.first + count and tokens[self.first + 1 :] == self.guess[:count]


def fork(sequences: list[Sequence], pool: BlockPool, runner: Runner) -> list[Branch]:
    """The branches of ``sequences``, as far as blocks are free."""
    found = []
    for sequence in sequences:
        for guess in sequence.branches:
            first = len(sequence.tokens) - 1
            base = first // BLOCK_SIZE
            need = -(-(first + 1 + len(guess)) // BLOCK_SIZE) - base
            if need > pool.free:
                break
            blocks = pool.take(need)
            if first % BLOCK_SIZE:
                runner.copy_block(sequence.table.blocks[base], blocks[0])
            found.append(Branch(sequence, guess, first, blocks))
    return found


def settle(branches: list[Branch], pool: BlockPool) -> None:
    """Give the blocks of those that won to their sequences, and all others back."""
    for branch in branches:
        if not branch.won:
            pool.release(branch.blocks)
            continue
        table, base = branch.sequence.table, branch.first // BLOCK_SIZE
        pool.release(table.blocks[base:])
        table.blocks[base:] = branch.blocks
