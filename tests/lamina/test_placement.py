"""Blocks that are shared, moved and written again: every worker reads the bytes that were last written."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.core.errors import InvalidConfig
from statepool.engine.attention.remote import lanes
from statepool.engine.attention.remote.placement import BySpan, place
from statepool.engine.batch import Batch
from statepool.kv import KVLayout

LAYOUT = KVLayout(1, 2, 16)
BLOCKS = 200


class Workers:
    """What each worker has of each block, beside what it should have: the tokens written to it."""

    def __init__(self, count, span):
        self.placement = BySpan(count, LAYOUT, 4, BLOCKS, span)
        self.has = [{} for _ in range(count)]
        self.truth = {}

    def step(self, parts, batches):
        """Sequences of (tokens to write, position of the first, table)."""
        batch = Batch.build(parts)
        for move in self.placement.moves(batch):
            for block in move.blocks:
                self.has[move.target][block] = dict(self.has[move.source][block])
        for number, (_, part) in enumerate(lanes.split(batch, batches)):
            errands = self.placement.errands(number, part)
            stored = np.concatenate([errand.stored for errand in errands])
            assert sorted(stored.tolist()) == list(range(part.tokens.size)), "every row is stored once"
            for errand in errands:
                for slot, token in zip(errand.plan.slots.tolist(), part.tokens[errand.stored].tolist(), strict=True):
                    block, offset = divmod(slot, 16)
                    if offset == 0:
                        self.has[errand.worker][block], self.truth[block] = {}, {}
                    self.has[errand.worker].setdefault(block, {})[offset] = token
                    self.truth[block][offset] = token
            for errand in errands:
                self.check(errand)

    def check(self, errand):
        plan, pages = errand.plan, self.placement._pages
        for r, context in enumerate(plan.context_len.tolist()):
            table = plan.tables[r, : -(-context // 16)].tolist()
            mine = range(len(table))
            if pages is not None:
                segments = [s for i, s in plan.parts.tolist() if i == r]
                mine = [i for i in mine if i // pages in segments]
            for i in mine:
                assert self.has[errand.worker].get(table[i]) == self.truth[table[i]], "stale bytes would be read"


@settings(max_examples=80)
@given(st.data(), st.integers(1, 4), st.sampled_from([None, 32]), st.integers(1, 3))
def test_workers_read_what_was_written(data, count, span, batches):
    workers, free = Workers(count, span), list(range(BLOCKS))
    running, known = (
        [],
        [[]],
    )  # sequences as [tokens, table, whether all of it is shared]; tables of full blocks that may be shared
    for _ in range(data.draw(st.integers(1, 8))):
        for _ in range(data.draw(st.integers(0, 2))):
            head = data.draw(st.sampled_from(known))
            head = head[: data.draw(st.integers(0, len(head)))]
            # Two requests that computed one beginning at a time leave blocks of both under its keys.
            other = data.draw(st.sampled_from(known))
            at = data.draw(st.integers(0, len(head)))
            head = head[:at] + other[at:]
            running.append([len(head) * 16, list(head), bool(head)])
        parts = []
        for sequence in running:
            tokens, table, _ = sequence
            if sequence[2] and tokens == len(table) * 16 and data.draw(st.booleans()):
                # A prompt that is cached whole: its last token is computed again, with the same bits.
                parts.append(([workers.truth[table[-1]][15]], tokens - 1, list(table)))
                continue
            rows = data.draw(st.integers(1, 40))
            first = tokens
            while len(table) * 16 < tokens + rows and free:
                table.append(free.pop())
            rows = min(rows, len(table) * 16 - tokens)
            if rows:
                sequence[0], sequence[2] = tokens + rows, False
                parts.append((data.draw(st.lists(st.integers(0, 9), min_size=rows, max_size=rows)), first, table))
        if parts:
            workers.step(parts, batches)
        for tokens, table, _ in running:
            if tokens >= 16 and table[: tokens // 16] not in known:
                known.append(table[: tokens // 16])
        if running and data.draw(st.booleans()):
            gone = running.pop(data.draw(st.integers(0, len(running) - 1)))
            shared = {block for head in known for block in head}
            free += [block for block in gone[1] if block not in shared]


def test_auto_takes_heads_where_it_can():
    assert type(place("auto", 2, LAYOUT, 4, 8)).__name__ == "ByHeads"
    assert type(place("auto", 3, LAYOUT, 4, 8)).__name__ == "BySpan"
    with pytest.raises(InvalidConfig, match="attention_split"):
        place("heads", 3, LAYOUT, 4, 8)


def test_requests_go_where_the_least_is():
    placement = BySpan(3, LAYOUT, 4, BLOCKS, None)
    batch = Batch.build([([1] * n, 0, list(range(10 * i, 10 * i + -(-n // 16)))) for i, n in enumerate((100, 30, 30))])
    assert placement.moves(batch) == []
    assert sorted(errand.worker for errand in placement.errands(0, batch)) == [0, 1, 2]


def test_a_lane_that_writes_a_shared_block_moves_nobody():
    """Two requests share block 0; one writes its last token again while the other reads it in the next lane."""
    workers = Workers(2, None)
    workers.step([(list(range(16)), 0, [0])], 1)
    workers.step([(list(range(48)), 0, [10, 11, 12])], 1)
    workers.step([([7], 48, [0, 11, 12, 13])], 1)  # most of it is on the second worker, so block 0 is copied there
    workers.step([([15], 15, [0]), ([7], 32, [0, 11, 14])], 2)
