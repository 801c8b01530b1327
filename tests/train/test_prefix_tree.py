"""The tree computes what whole sequences in rows do: log-probabilities and gradients, on drawn batches in float64."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from statepool.train import tree_gradient
from statepool.train.policy import scatter
from statepool.train.prefix_tree import Sample, hidden, plant
from statepool.train.torch_model import Qwen3, Shape
from statepool.train.tree_gradient import Computed, learned

SMALL = Shape(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)


@pytest.fixture(scope="module")
def model():
    model = Qwen3(SMALL).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return model


@st.composite
def batches(draw):
    """Groups of samples whose prompts share beginnings of any length, responses of any length and mask."""
    tokens = st.lists(st.integers(0, 39), min_size=0, max_size=6)
    shared = draw(tokens)
    samples = []
    for _ in range(draw(st.integers(1, 3))):
        prompt = [*shared, *draw(tokens)] or [1]
        for _ in range(draw(st.integers(1, 3))):
            answer = draw(st.lists(st.integers(0, 39), min_size=1, max_size=7))
            learn = draw(st.lists(st.booleans(), min_size=len(answer), max_size=len(answer)))
            samples.append(Sample(prompt + answer, [False] * len(prompt) + learn, len(prompt)))
    return samples


def in_rows(model, samples):
    """The plain way: one sequence after another, whole."""
    out = torch.zeros(len(samples), max(len(s.tokens) - s.prompt for s in samples), dtype=torch.float64)
    found = {}
    for row, sample in enumerate(samples):
        logs = model(torch.tensor([sample.tokens]))[0].log_softmax(-1)
        for at in range(sample.prompt, len(sample.tokens)):
            if sample.learn[at]:
                found[row, at - sample.prompt] = logs[at - 1, sample.tokens[at]]
    for place, value in found.items():
        out = out.index_put(tuple(torch.tensor([i]) for i in place), value[None])
    return out


def written_out(model, samples):
    """The tree's gradients by their formulas, at the values that torch's modules compute."""
    tree, seen = plant(samples), {}

    def keep(module, given):
        seen.setdefault(module, []).append(given[0].flatten(0, -2))

    layers = list(model.model.layers)
    watched = [*(m for layer in layers for m in (layer.input_layernorm, layer.self_attn.o_proj)), model.model.norm]
    hooks = [module.register_forward_pre_hook(keep) for module in watched]
    with torch.no_grad():
        logits = model.logits(hidden(model, tree)[tree.predictors])
    for hook in hooks:
        hook.remove()
    states = [torch.cat(seen[module]) for module in (*(layer.input_layernorm for layer in layers), model.model.norm)]
    mixed = [torch.cat(seen[layer.self_attn.o_proj]) for layer in layers]
    out = learned(logits, dict(model.named_parameters()), model.shape, tree, Computed(states, mixed))
    return scatter(out, tree.targets, tree.rows, tree.columns, tree.shape, 1.0)


def in_a_tree(model, samples):
    tree = plant(samples)
    logits = model.logits(hidden(model, tree)[tree.predictors])
    return scatter(logits, tree.targets, tree.rows, tree.columns, tree.shape, 1.0)


@pytest.mark.parametrize(
    ("way", "parts"), [(in_a_tree, {}), (written_out, {}), (written_out, {"_ROWS": 3, "_SCORES": 40})]
)
@settings(max_examples=40)
@given(samples=batches())
def test_log_probabilities_and_gradients_are_those_of_rows(model, way, parts, samples):
    assume(any(flag for sample in samples for flag in sample.learn))
    weight = torch.randn(1, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    grads = []
    for scored in (in_rows, lambda m, s: way(m, s).logprobs):
        model.zero_grad()
        with pytest.MonkeyPatch.context() as patch:
            for name, most in parts.items():
                patch.setattr(tree_gradient, name, most)
            logprobs = scored(model, samples)
            (logprobs * weight[:, : logprobs.shape[1]]).sum().backward()
        grads.append((logprobs.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (rows, one), (tree, other) = grads
    assert torch.allclose(rows, tree, atol=1e-10)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(one, other, strict=True))


@given(samples=batches())
def test_the_mask_marks_what_is_learned(model, samples):
    with torch.no_grad():
        scored = in_a_tree(model, samples)
    wanted = torch.zeros(scored.mask.shape)
    for row, sample in enumerate(samples):
        for at in range(sample.prompt, len(sample.tokens)):
            wanted[row, at - sample.prompt] = float(sample.learn[at])
    assert torch.equal(scored.mask.float(), wanted)
    assert bool((scored.entropy >= 0).all())


def test_shared_prompts_are_computed_once():
    prompt, answers = list(range(30)), [[1, 2, 3]] * 8
    tree = plant([Sample(prompt + a, [False] * 30 + [True] * 3, 30) for a in answers])
    assert tree.computed == 30 + 8 * 2  # the last token of a sequence predicts nothing


def test_a_long_response_does_not_widen_the_short_ones():
    answers = [[7] * 5] * 6 + [[7] * 4, [7] * 41]
    tree = plant([Sample([1, 2, *a], [False] * 2 + [True] * len(a), 2) for a in answers])
    assert [tuple(level.ids.shape) for level in tree.levels] == [(1, 1), (1, 1), (1, 40), (7, 4)]
    assert tree.computed == 2 + 40 + 7 * 4
