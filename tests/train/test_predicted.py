"""Gradients that are written out are those of torch's own operations, and given values come through as they are."""

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st

from statepool.train.given import given, valued
from statepool.train.predicted import chosen


def random(*shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@drawn(rows=st.integers(1, 600), vocab=st.integers(1, 40), seed=st.integers(0, 99))
def test_log_probability_and_entropy_are_those_of_log_softmax(rows, vocab, seed):
    logits, targets = random(rows, vocab, seed=seed), torch.arange(rows) % vocab
    up = random(rows, seed=seed + 1).detach()
    found, entropy = chosen(logits, targets)
    (mine,) = torch.autograd.grad(found, logits, up)
    wanted = torch.distributions.Categorical(logits=logits)
    (theirs,) = torch.autograd.grad(wanted.log_prob(targets), logits, up)
    assert torch.allclose(found, wanted.log_prob(targets), atol=1e-12)
    assert torch.allclose(entropy, wanted.entropy(), atol=1e-12)
    assert torch.allclose(mine, theirs, atol=1e-12)
    assert not entropy.requires_grad


@pytest.mark.parametrize("shape", [(7,), (3, 5)])
def test_a_given_value_has_the_gradients_of_what_it_stands_for(shape):
    x, weight, residual = random(*shape, 4, seed=1), random(6, 4, seed=2), random(*shape, 6, seed=3)
    value, up = random(*shape, 6, seed=4).detach(), random(*shape, 6, seed=5).detach()
    plain = torch.nn.functional.linear(x, weight) + residual
    theirs = torch.autograd.grad(plain, (x, weight, residual), up, retain_graph=True)
    for out in (given(x, weight, value, residual), valued(plain, value)):
        assert torch.equal(out, value)
        mine = torch.autograd.grad(out, (x, weight, residual), up, retain_graph=True)
        assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(mine, theirs, strict=True))
    assert torch.equal(given(x, weight, value), value)


def test_a_weight_that_does_not_learn_gets_no_gradient():
    x, weight = random(5, 4, seed=1), random(6, 4, seed=2).detach()
    given(x, weight, torch.zeros(5, 6, dtype=torch.float64)).sum().backward()
    assert torch.allclose(x.grad, weight.sum(0).expand(5, 4))
    assert weight.grad is None
