"""Advantages and losses against plain loops over numbers, and whole batches against their parts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statepool.core.errors import InvalidConfig, InvalidRequest
from statepool.train.grpo import LossConfig, Total, advantages, aggregate, distance, engine_weights, policy_loss

REWARDS = st.lists(st.tuples(st.integers(0, 3), st.floats(-1, 2)), min_size=1, max_size=12)


@given(drawn=REWARDS, normalise=st.sampled_from(["group", "none", "batch", "rloo"]))
def test_advantages_are_those_of_a_loop(drawn, normalise):
    groups, rewards = [g for g, _ in drawn], [r for _, r in drawn]
    found = advantages(torch.tensor(rewards, dtype=torch.float64), groups, normalise)

    def deviation(values):
        mean = sum(values) / len(values)
        return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))

    for i, (group, reward) in enumerate(drawn):
        mine = [r for g, r in drawn if g == group]
        mean, n = sum(mine) / len(mine), len(mine)
        if n == 1:
            wanted = reward / (1 + 1e-6) if normalise == "group" else reward
        elif normalise == "rloo":
            wanted = reward - (sum(mine) - reward) / (n - 1)
        else:
            wanted = reward - mean
            if normalise == "group":
                wanted /= deviation(mine) + 1e-6
            elif normalise == "batch":
                wanted /= deviation(rewards) + 1e-6
        assert found[i].item() == pytest.approx(wanted, abs=1e-8, rel=1e-7)


def drawn_batch(rows=5, width=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)

    def normal(scale):
        return torch.randn(rows, width, generator=generator, dtype=dtype) * scale

    mask = (torch.rand(rows, width, generator=generator) < 0.7).to(dtype)
    mask[1] = 0
    old = -normal(1.0).abs()
    return old + normal(0.4), old, normal(1.0)[:, 0], mask, old + normal(0.3), old + normal(0.3)


CONFIGS = [
    LossConfig(ratio=ratio, dual_clip=dual, aggregate=way, length=9, kl=kl, kl_kind=kind, tis=tis, tis_level=level)
    for ratio, dual, way, kl, kind, tis, level in [
        ("token", None, "token-mean", 0.0, "k3", None, "token"),
        ("token", 1.3, "token-mean", 0.1, "k3", 2.0, "token"),
        ("token", 3.0, "seq-mean-token-mean", 0.1, "k1", 1.1, "sequence"),
        ("sequence", None, "seq-mean-token-mean", 0.0, "k2", None, "token"),
        ("sequence", None, "seq-mean-token-sum-norm", 0.2, "k2", 3.0, "token"),
        ("cispo", None, "seq-mean-token-sum", 0.0, "k3", 2.0, "token"),
    ]
]


def by_hand(logp, old, advantage, mask, config, engine, reference):
    """The definition, one number at a time."""
    rows = []
    for i in range(len(logp)):
        kept = [t for t in range(logp.shape[1]) if mask[i, t]]
        if not kept:
            continue
        above = [float(old[i, t] - engine[i, t]) for t in kept]
        values = []
        for at, t in enumerate(kept):
            logged = float(logp[i, t] - old[i, t])
            if config.ratio == "sequence":
                logged = sum(float(logp[i, u] - old[i, u]) for u in kept) / len(kept)
            ratio, a = math.exp(logged), float(advantage[i])
            clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            if config.ratio == "cispo":
                value = -clipped * a * float(logp[i, t])
            else:
                value = max(-a * ratio, -a * clipped)
                if config.dual_clip and config.ratio == "token" and a < 0:
                    value = min(value, -a * config.dual_clip)
            if config.tis:
                value *= min(math.exp(sum(above) if config.tis_level == "sequence" else above[at]), config.tis)
            apart = float(logp[i, t] - reference[i, t])
            value += config.kl * {"k1": apart, "k2": apart**2 / 2, "k3": math.exp(-apart) + apart - 1}[config.kl_kind]
            values.append(value)
        rows.append(values)
    if config.aggregate == "token-mean":
        return sum(map(sum, rows)) / sum(map(len, rows))
    sums = [sum(row) / (len(row) if config.aggregate == "seq-mean-token-mean" else 1) for row in rows]
    return sum(sums) / len(rows) / (9 if config.aggregate.endswith("norm") else 1)


@pytest.mark.parametrize("config", CONFIGS)
def test_losses_are_those_of_the_definition(config):
    logp, old, advantage, mask, engine, reference = drawn_batch()
    loss, _ = policy_loss(logp, old, advantage, mask, config, Total.of(mask), engine, reference)
    assert loss.item() == pytest.approx(by_hand(logp, old, advantage, mask, config, engine, reference), abs=1e-7)


@settings(max_examples=30)
@given(cut=st.integers(1, 4), config=st.sampled_from(CONFIGS))
def test_parts_of_a_batch_add_up(cut, config):
    logp, old, advantage, mask, engine, reference = drawn_batch()
    total = Total.of(mask)
    whole, _ = policy_loss(logp, old, advantage, mask, config, total, engine, reference)
    parts = sum(
        policy_loss(logp[s], old[s], advantage[s], mask[s], config, total, engine[s], reference[s])[0]
        for s in (slice(0, cut), slice(cut, None))
    )
    assert whole.item() == pytest.approx(parts.item(), abs=1e-10)


@pytest.mark.parametrize("config", CONFIGS)
def test_what_padding_holds_changes_nothing(config):
    logp, old, advantage, mask, engine, reference = drawn_batch()
    before, _ = policy_loss(logp, old, advantage, mask, config, Total.of(mask), engine, reference)
    noisy = torch.where(mask > 0, logp, -50.0).requires_grad_()
    after, _ = policy_loss(noisy, old, advantage, mask, config, Total.of(mask), engine, reference)
    after.backward()
    assert before.item() == pytest.approx(after.item(), abs=1e-10)
    assert not noisy.grad[mask == 0].any()


def test_a_sequence_ratio_has_the_gradient_of_its_mean():
    logp, old, advantage, mask, _, _ = drawn_batch()
    config = LossConfig(ratio="sequence", clip_low=1.0, clip_high=9.0, aggregate="seq-mean-token-mean", tis=None)
    ours = logp.clone().requires_grad_()
    policy_loss(ours, old, advantage, mask, config, Total.of(mask))[0].backward()
    theirs = logp.clone().requires_grad_()
    mean = ((theirs - old) * mask).sum(-1) / mask.sum(-1).clamp(min=1)
    has = (mask.sum(-1) > 0).double()
    (-(mean.exp() * advantage * has).sum() / has.sum()).backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-8)


def test_on_policy_the_gradient_is_the_policy_gradient():
    logp, _, advantage, mask, _, _ = drawn_batch()
    ours = logp.clone().requires_grad_()
    policy_loss(ours, logp, advantage, mask, LossConfig(), Total.of(mask))[0].backward()
    assert torch.allclose(ours.grad, -advantage[:, None] * mask / mask.sum(), atol=1e-12)


def test_weights_of_the_engine_are_cut():
    trainer, engine = torch.zeros(1, 3), torch.tensor([[0.0, -5.0, 5.0]])
    found = engine_weights(trainer, engine, torch.ones(1, 3), LossConfig(tis=2.0))
    assert found.tolist() == [[1.0, 2.0, pytest.approx(math.exp(-5), rel=1e-5)]]


def test_k3_is_never_negative():
    assert bool((distance(torch.linspace(-9, 9, 50), torch.zeros(50), "k3") >= 0).all())


def test_nothing_to_learn_is_zero():
    assert aggregate(torch.ones(2, 3), torch.zeros(2, 3), LossConfig(), Total(0, 0)).item() == 0


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"clip_low": 1.5}, "clip_low"),
        ({"dual_clip": 1.0}, "dual_clip"),
        ({"aggregate": "seq-mean-token-sum-norm"}, "length"),
        ({"kl": -1.0}, "kl"),
        ({"tis": 0.0}, "tis"),
    ],
)
def test_impossible_settings_name_their_field(settings, field):
    with pytest.raises(InvalidConfig, match=field) as caught:
        LossConfig(**settings)
    assert caught.value.param == field


def test_bad_rewards_are_refused():
    with pytest.raises(InvalidRequest, match="as many groups"):
        advantages(torch.zeros(2), [0])
    with pytest.raises(InvalidRequest, match="not a finite number"):
        advantages(torch.tensor([math.nan, 1.0]), [0, 0])
    with pytest.raises(InvalidRequest, match="reference"):
        logp, old, advantage, mask, _, _ = drawn_batch()
        policy_loss(logp, old, advantage, mask, LossConfig(kl=0.1), Total.of(mask))
