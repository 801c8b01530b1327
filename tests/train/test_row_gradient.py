"""Norms, rotation, gated products, softmax there and back, against torch's derivatives in float64, on drawn rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from statepool.native import kernels
from statepool.train import row_gradient

EPS = 1e-6
DTYPES = [torch.float32, torch.float64]
"""The native code, where there is any, and torch's operations."""


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def part_of_wider(x, dtype):
    """The same numbers, as a part of rows that hold more."""
    wide = torch.full((len(x), x.shape[1] + 5), torch.nan, dtype=dtype)
    wide[:, 2:-3] = x
    return wide[:, 2:-3]


def plain(x, weight, turn):
    heads = functional.rms_norm(x.unflatten(1, (-1, len(weight))), (len(weight),), weight, EPS)
    if turn is not None:
        a, b = heads.chunk(2, -1)
        cos, sin = (table[:, None] for table in turn)
        heads = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
    return heads.flatten(1)


def close(value, wanted, dtype):
    return torch.allclose(value.double(), wanted, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(1, 3), st.integers(1, 40), st.booleans())
def test_a_norm_and_its_gradients(dtype, seed, tokens, heads, half, turned):
    dim = 2 * half
    x, up, weight = drawn(seed, tokens, heads * dim), drawn(seed + 1, tokens, heads * dim), drawn(seed + 2, dim)
    angles = drawn(seed + 3, tokens, half)
    turn = (angles.cos(), angles.sin()) if turned else None
    for one in (x, weight):
        one.requires_grad_()
    value = plain(x, weight, turn)
    value.backward(up)

    given_turn = None if turn is None else (turn[0].to(dtype), turn[1].to(dtype))
    rows, above = part_of_wider(x.detach(), dtype), part_of_wider(up, dtype)
    scale = weight.detach().to(dtype)
    assert close(row_gradient.norm(rows, scale, EPS, given_turn), value.detach(), dtype)
    own = torch.ones(dim, dtype=dtype)
    below = row_gradient.norm_back(rows, scale, EPS, above, own, given_turn)
    assert below is above
    bound = x.grad.abs().max() + 1
    assert close(below / bound, x.grad / bound, dtype)
    bound = weight.grad.abs().max() + 1
    assert close(own / bound, (1 + weight.grad) / bound, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 70), st.integers(1, 70), st.sampled_from([1.0, 20.0, 200.0]))
def test_a_gated_product_and_its_gradients(dtype, seed, tokens, inner, size):
    gate, other, up = (drawn(seed + i, tokens, inner) for i in range(3))
    gate = (gate * size).requires_grad_()
    other.requires_grad_()
    product = functional.silu(gate) * other
    product.backward(up)
    both, above = (part_of_wider(x, dtype) for x in (torch.cat((gate, other), 1).detach(), up))
    row_gradient.gated_back(both, above)
    wanted = torch.cat((gate.grad, other.grad), 1)
    assert close(both / size, wanted / size, dtype)
    assert close(above / size, product.detach() / size, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 20), st.integers(1, 3), st.integers(0, 40), st.booleans()
)
def test_a_causal_softmax_and_its_gradient(dtype, seed, rows, width, group, above, padded):
    shape = (rows, width * group, above + width)
    scores, up = drawn(seed, *shape) * 10, drawn(seed + 1, *shape)
    hidden = drawn(seed + 2, rows, above) > 0 if padded else None
    allowed = torch.zeros(shape, dtype=torch.bool)
    for query in range(width * group):
        allowed[:, query, : above + query // group + 1] = True
    if hidden is not None:
        allowed[:, :, :above] &= ~hidden[:, None]
    scores.requires_grad_()
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    weights.backward(up)
    along = (weights * up).sum(-1).detach()
    value, below = scores.detach().to(dtype), up.to(dtype)
    row_gradient.softmax_back(value, below, along.to(dtype), hidden, width)
    assert close(value, weights.detach(), dtype)
    assert close(below, scores.grad, dtype)


@pytest.mark.skipif(kernels is None, reason="needs the native module")
def test_threads_and_instruction_sets_change_no_bit():
    x, up, angles = (drawn(i, 1000, columns).float() for i, columns in enumerate((96, 96, 16)))
    weight, turn = drawn(3, 32).float(), (angles.cos(), angles.sin())
    both, scores, along = drawn(4, 1000, 96).float(), drawn(5, 30, 12, 27).float(), drawn(6, 30, 12).float()
    found, before = [], (kernels.threads(), kernels.isa())
    try:
        for threads, isa in ((1, before[1]), (3, before[1]), (1, "generic")):
            kernels.set_threads(threads)
            kernels.set_isa(isa)
            own, below, gates, above = torch.zeros(32), up.clone(), both.clone(), up[:, :48].clone()
            row_gradient.norm_back(x, weight, EPS, below, own, turn)
            row_gradient.gated_back(gates, above)
            weights, below_scores = scores.clone(), scores.clone()
            row_gradient.softmax_back(weights, below_scores, along, None, 6)
            normed = row_gradient.norm(x, weight, EPS, turn)
            found.append((own, below, gates, above, normed, weights, below_scores))
    finally:
        kernels.set_threads(before[0])
        kernels.set_isa(before[1])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.skipif(kernels is None, reason="needs the native module")
def test_rows_that_do_not_fit_are_named():
    x, weight = drawn(0, 4, 8).float(), drawn(1, 8).float()
    tables = (drawn(2, 3, 4).float(),) * 2
    with pytest.raises(ValueError, match=r"x: must be \[T, heads"):
        row_gradient.norm(x, drawn(1, 3).float(), EPS)
    with pytest.raises(ValueError, match=r"cos: must be \[T"):
        row_gradient.norm(x, weight, EPS, tables)
    with pytest.raises(ValueError, match="own: must be as w"):
        row_gradient.norm_back(x, weight, EPS, x.clone(), weight[:4].clone())
    scores = drawn(3, 2, 3, 5).float()
    with pytest.raises(ValueError, match="width: must divide"):
        row_gradient.softmax_back(scores, scores.clone(), scores[:, :, 0].contiguous(), None, 2)
    with pytest.raises(ValueError, match="both: must be"):
        row_gradient.gated_back(x, x.clone())
