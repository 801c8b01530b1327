"""Cost models against the figures they were fitted to and the sizes the papers state."""

import numpy as np
import pytest

from statepool.core.errors import InvalidConfig
from statepool.serve.costs import NODES, fit_prefill, least_squares, node_costs


@pytest.mark.parametrize(
    ("node", "tokens", "seconds"),
    [
        ("a800", 8192, 1.00),
        ("a800", 12288, 1.51),
        ("a800", 32768, 4.76),
        ("a800", 131072, 31.3),
        ("h800", 8192, 0.49),
        ("h800", 12288, 0.73),
        ("h800", 32768, 2.21),
        ("h800", 131072, 13.1),
    ],
)
def test_prefill_as_published(node, tokens, seconds):
    assert NODES[node].prefill_s(tokens) == pytest.approx(seconds, rel=0.03)


@pytest.mark.parametrize(("batch", "milliseconds"), [(16, 23), (64, 38), (128, 58), (256, 99)])
def test_decode_at_8k_context(batch, milliseconds):
    assert NODES["a800"].decode_s(batch, batch * 8192) * 1000 == pytest.approx(milliseconds, rel=0.07)


def test_sizes_of_the_paper():
    node = NODES["a800"]
    assert node.kv_bytes * 512 == 160 << 20
    assert node.transfer_s(512) == pytest.approx((160 << 20) / 100e9)
    assert node_costs("a800", nic_gbps=100).transfer_s(512) == pytest.approx((160 << 20) / 12.5e9)
    assert node.dram_tokens * node.kv_bytes == pytest.approx(1e12, rel=0.02)


def test_a_prefix_costs_what_it_saves():
    node = NODES["a800"]
    whole = node.prefill_s(20_000)
    assert node.prefill_s(8_000) + node.prefill_s(20_000, 8_000) == pytest.approx(whole + node.prefill[0])
    cached = np.array([0, 512, 8_000])
    assert node.prefill_many_s(20_000, cached) == pytest.approx([node.prefill_s(20_000, p) for p in cached.tolist()])


def test_chunks_cost_their_constant_share_each():
    node = NODES["a800"]
    pieces = [(0, 8192), (8192, 16384), (16384, 20000)]
    assert node.chunked_s(20_000, 0, 8192) == pytest.approx(sum(node.prefill_s(end, start) for start, end in pieces))
    assert node.chunked_s(20_000, 20_000, 8192) == 0
    assert node.chunked_s(20_000, 0, 0) == node.prefill_s(20_000)


def test_many_decode_steps_are_each_one():
    batch, tokens = np.array([1, 100, 6000]), np.array([10, 10**6, 0])
    each = [NODES["h800"].decode_s(b, t) for b, t in zip(batch.tolist(), tokens.tolist(), strict=True)]
    assert NODES["h800"].decode_many_s(batch, tokens) == pytest.approx(each)
    assert each[2] > 1.4 * NODES["h800"].decode_s(4096, 0)


def test_a_fit_finds_the_coefficients_through_noise():
    noise = np.random.default_rng(0)
    n = noise.integers(200, 100_000, 60)
    p = (n * noise.uniform(0, 0.9, 60)).astype(int)
    true = (0.02, 9e-5, 1.5e-9)
    seconds = (true[0] + true[1] * (n - p) + true[2] * (n**2 - p**2)) * noise.uniform(0.98, 1.02, 60)
    found, worst = fit_prefill(n.tolist(), p.tolist(), seconds.tolist())
    assert found == pytest.approx(true, rel=0.1)
    assert worst < 0.05


def test_no_other_costs_above_zero_fit_better():
    """The conditions of Karush, Kuhn and Tucker, which the optimum of a convex problem fulfils and nothing else."""
    draw, bound = np.random.default_rng(0), 0
    for _ in range(200):
        design = draw.uniform(0, 1, (12, draw.integers(1, 5)))
        measured = design @ draw.uniform(-0.5, 1, design.shape[1]) + draw.normal(0, 0.1, 12)
        found = least_squares(design, measured)
        slope = design.T @ (design @ found - measured)
        assert (found >= 0).all()
        assert (slope > -1e-9).all(), "a larger cost would fit better"
        assert found @ slope == pytest.approx(0, abs=1e-9)
        bound += int((found == 0).any())
    assert 20 < bound < 180, "some draws hold costs back, some do not"


def test_columns_that_say_the_same_share():
    design = np.array([[1.0, 1.0, 10.0], [1.0, 1.0, 30.0], [1.0, 1.0, 20.0]])
    assert least_squares(design, np.array([0.05, 0.03, 0.04])) == pytest.approx([0.02, 0.02, 0])


@pytest.mark.parametrize(
    ("columns", "message"),
    [(([1, 1, 1], [0, 0, 0], [1, 1, 1]), "three different"), (([1, 2, 3], [0, 0, 0], [1, 0, 1]), "more than 0")],
)
def test_what_cannot_be_fitted(columns, message):
    with pytest.raises(InvalidConfig, match=message):
        fit_prefill(*columns)


def test_unknown_nodes():
    with pytest.raises(InvalidConfig, match="known are a800, h800"):
        node_costs("b200")
    with pytest.raises(InvalidConfig, match="nic_gbps"):
        node_costs("a800", nic_gbps=0)
