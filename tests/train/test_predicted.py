"""Gradients that are written out are those of torch's own operations, and given values come through as they are."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from statepool.train.given import valued
from statepool.train.predicted import chosen


def random(*shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@given(rows=st.integers(1, 600), vocab=st.integers(1, 40), seed=st.integers(0, 99))
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


def test_a_given_value_has_the_gradients_of_what_it_stands_for():
    x, weight, up = random(3, 5, 4, seed=1), random(6, 4, seed=2), random(3, 5, 6, seed=5).detach()
    value = random(3, 5, 6, seed=4).detach()
    plain = torch.nn.functional.linear(x, weight)
    theirs = torch.autograd.grad(plain, (x, weight), up, retain_graph=True)
    out = valued(plain, value)
    assert torch.equal(out, value)
    assert all(map(torch.equal, torch.autograd.grad(out, (x, weight), up), theirs))
