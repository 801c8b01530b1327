"""Batches that take turns on replicas, and the bytes they send."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lamina.asking import requests
from tests.small_models import write_model

from statepool.engine.attention.remote import lanes
from statepool.engine.batch import Batch


@given(st.integers(1, 6), st.integers(1, 9))
def test_every_slice_has_its_turn(batches, parts):
    turns = lanes.turns(batches, parts)
    assert len(turns) == max(batches - 1, 1)
    assert sorted(pair for mine in turns for pair in mine) == sorted(
        (j, k) for j in range(batches) for k in range(parts)
    )
    for mine in turns:
        assert [k for _, k in mine] == sorted(k for _, k in mine)
    if batches == 2:
        assert lanes.replica_of(0, 0, 2) == lanes.replica_of(1, 5, 2), "nothing moves between replicas"


@pytest.mark.parametrize("batches", [1, 2, 3, 4])
def test_slices_of_a_batch_run_in_order(batches):
    ran, lock = [], threading.Lock()
    done = {(j, k): threading.Event() for j in range(batches) for k in range(-1, 6)}

    def run(batch, part):
        if part:
            assert done[batch, part - 1].wait(5), "as the attention before it would be waited for"
        with lock:
            ran.append((batch, part))
        done[batch, part].set()

    lanes.rotate(batches, 6, run)
    for j in range(batches):
        assert [part for batch, part in ran if batch == j] == list(range(6))


def test_what_a_slice_raises_is_raised():
    def run(batch, part):
        if (batch, part) == (1, 2):
            raise ValueError("slice")

    with pytest.raises(ValueError, match="slice"):
        lanes.rotate(2, 4, run)
    with pytest.raises(ValueError, match="slice"):
        lanes.rotate(3, 4, run)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 5))
def test_batches_are_cut_between_requests(counts, parts):
    batch = Batch.build([(list(range(n)), 0, list(range(-(-n // 16)))) for n in counts])
    found = lanes.split(batch, parts)
    assert 1 <= len(found) <= parts
    tokens = np.concatenate([part.tokens for _, part in found])
    np.testing.assert_array_equal(tokens, batch.tokens)
    assert sum(len(part.context_len) for _, part in found) == len(counts)
    for rows, part in found:
        np.testing.assert_array_equal(batch.positions[rows], part.positions)
        assert part.query_start[0] == 0
        assert part.query_start[-1] == part.tokens.size


def test_bytes_are_those_of_the_formula(engines, nodes, tmp_path):
    """(2 + 2/G) e d B L per step, and at most 2 % of headers and tables."""
    model = write_model(
        tmp_path / "wide", num_attention_heads=16, num_key_value_heads=4, head_dim=64, num_hidden_layers=6
    )
    engine = engines(model, quant="fp32", kv_bytes=32 << 20, attention_workers=",".join(nodes(2)))
    asked = list(requests(16, seed=4, lengths=(20, 28), answer=30))
    for request in asked:
        engine.submit(request)
    while engine.stats().generated_tokens < 16:
        engine.step()
    before = sum(link.total for link in engine.runner.traffic())
    for _ in range(6):
        engine.step()
    sent = sum(link.total for link in engine.runner.traffic()) - before
    formula = (2 + 2 / 4) * 4 * (16 * 64) * (16 * 6) * 6
    assert formula <= sent <= 1.02 * formula
