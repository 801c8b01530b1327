"""Slices found by minimum cuts: of the right weight, enough to go on with, and the same model."""

import json

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.small_models import write_model

from statepool.cli import main
from statepool.core.errors import InvalidConfig, InvalidRequest
from statepool.engine.slicing.graph import Op, OpGraph, slice_graph

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BASE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 120,
}
FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    # learned positions, LayerNorm, queries, keys and values in one matrix
    "gpt2": {"bos_token_id": 0, "eos_token_id": 0},
    # attention and MLP side by side on one residual
    "gpt_neox": {"bos_token_id": 0, "eos_token_id": 0},
    "phi": {},
}


def cut_weight(graph, attention):
    """The minimum cut around one attention by networkx, on the graph as it is: no operator is merged with another."""
    net = nx.DiGraph()
    readers = graph.readers()
    for name, op in graph.ops.items():
        if name == attention.name:
            continue
        net.add_edge(("run", name), ("value", name), capacity=op.nbytes)
        for reader in readers[name]:
            if reader != attention.name:
                net.add_edge(("value", name), ("run", reader))
                net.add_edge(("run", reader), ("run", name))
    for name in attention.inputs:
        net.add_edge("source", ("run", name))
    for name in readers[attention.name]:
        net.add_edge(("run", name), "sink")
    return nx.minimum_cut(net, "source", "sink")[0]


@st.composite
def layered(draw):
    """Operators of random weights that read some earlier ones, with attentions in a chain."""
    ops = [Op("in", "input", (), draw(st.integers(1, 9)))]
    last = None
    for i in range(draw(st.integers(1, 4))):
        for j in range(draw(st.integers(3, 8))):
            pool = [op.name for op in ops]
            reads = set(draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3)))
            if last is not None and j == 0:
                reads = {last, *reads}
            ops.append(Op(f"o{i}_{j}", "op", tuple(sorted(reads)), draw(st.integers(0, 9))))
        qkv = (ops[-1].name, ops[-2].name, ops[-3].name)
        last = f"a{i}"
        # As in a model: whatever comes behind an attention reads its result, by way of the operators above.
        bridge = Op(f"q{i}", "op", tuple({*qkv, *([f"a{i - 1}"] if i else [])}), draw(st.integers(0, 9)))
        ops += [bridge, Op(last, "attention", (bridge.name, *qkv[1:]), draw(st.integers(1, 9)))]
    return OpGraph.of([*ops, Op("out", "output", (last, ops[-3].name), 0)])


@given(layered())
def test_cuts_are_minimal_and_enough(graph):
    slicing = slice_graph(graph)
    assert len(slicing.slices) == len(graph.attentions) + 1
    known = set()
    for part, cut in zip(slicing.slices, slicing.cuts, strict=False):
        attention = graph.ops[cut.attention]
        for name in part.ops:
            assert set(graph.ops[name].inputs) <= known, "nothing runs on what was not kept"
            known.add(name)
        assert set(attention.inputs) <= known
        assert cut.nbytes == sum(graph.ops[name].nbytes for name in cut.kept)
        if len(slicing.cuts) == 1:  # later cuts also have the earlier slices to respect
            assert cut.nbytes == cut_weight(graph, attention)
        known = {*cut.kept, cut.attention}
    assert sorted(name for part in slicing.slices for name in part.ops) == sorted(
        name for name, op in graph.ops.items() if op.kind != "attention"
    )


def check_order(slicing):
    """Queries first, then what only keys and values need."""
    ops = slicing.graph.ops
    for part, attention in zip(slicing.slices, slicing.graph.attentions, strict=False):
        assert attention.inputs[0] in part.query
        assert not {*attention.inputs[1:]} & {*part.query}
        assert all(set(ops[name].inputs) & {*part.query, *part.keys} for name in part.keys)


def config_of(family):
    return transformers.AutoConfig.for_model(family, **BASE, **FAMILIES[family])


@pytest.mark.parametrize(
    "family", [name if name == "llama" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_families_are_cut_at_the_minimum_and_stay_the_same_model(family, nodes, record_property):
    from statepool.engine.slicing.capture import attentive
    from statepool.engine.slicing.run import RemoteAttention, SlicedModel, WholeAttention, greedy

    torch.manual_seed(1)
    model = attentive(config_of(family))
    sliced = SlicedModel(model)
    graph = sliced.captured.graph
    assert len(graph.attentions) == 2
    assert len(sliced.slicing.slices) == 3
    for cut, attention in zip(sliced.slicing.cuts, graph.attentions, strict=True):
        assert cut.nbytes == cut_weight(graph, attention)
    check_order(sliced.slicing)

    plain = transformers.AutoModelForCausalLM.from_config(config_of(family), attn_implementation="eager").eval()
    plain.load_state_dict(model.state_dict())
    tokens, positions = torch.randint(1, 120, (1, 21)), torch.arange(21)[None]
    with torch.no_grad():
        whole = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
        outside = plain(input_ids=tokens, position_ids=positions, use_cache=False).logits
    ours = sliced(tokens, positions, WholeAttention())
    assert torch.equal(ours, whole)
    torch.testing.assert_close(ours, outside, rtol=1e-4, atol=1e-5)

    heads = BASE["num_attention_heads"]
    shape = (2, heads, getattr(model.config, "num_key_value_heads", None) or heads, 16)
    remote = RemoteAttention(nodes(2), *shape)
    prompts = [tokens[0].tolist(), tokens[0, :5].tolist()]
    said = greedy(sliced, remote, prompts, 8)
    remote.close()
    for prompt, answer in zip(prompts, said, strict=True):
        known = list(prompt)
        for token in answer:
            with torch.no_grad():
                row = plain(input_ids=torch.tensor([known]), use_cache=False).logits[0, -1]
            assert row[token] >= row.max() - 1e-4, "the most likely token of the whole model, but for rounding"
            known.append(token)
    record_property("families", 1)


def test_what_cannot_be_cut_is_told():
    with pytest.raises(InvalidRequest, match="no attention"):
        slice_graph(OpGraph.of([Op("a", "input", (), 1)]))
    with pytest.raises(InvalidRequest, match="not before it"):
        OpGraph.of([Op("a", "op", ("b",), 1)])


@pytest.mark.slow
def test_models_that_cannot_be_cut_are_told():
    from statepool.engine.slicing.capture import capture

    for family, word in (("bloom", "attention interface"), ("gptj", "cannot be replaced")):
        with pytest.raises(InvalidConfig, match=word):
            capture(transformers.AutoConfig.for_model(family, **BASE))
    with pytest.raises(InvalidConfig, match="sliding_window"):
        capture(transformers.AutoConfig.for_model("gemma2", **BASE, head_dim=16, num_key_value_heads=2))


@pytest.mark.slow
def test_command(tmp_path, capsys):
    model = write_model(tmp_path / "model")
    assert main(["slice", str(model), "--dot", str(tmp_path / "slices.dot")]) == 0
    assert "3 slices" in capsys.readouterr().out
    dot = (tmp_path / "slices.dot").read_text()
    assert dot.count("subgraph") == 3
    assert dot.count('label="attention"') == 2
    assert "color=red" in dot


@pytest.mark.slow
def test_command_checks_and_prints_json(tmp_path, capsys):
    model = write_model(tmp_path / "model")
    assert main(["slice", str(model), "--json", "--check"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["slices"]) == 3
    assert "logits of the whole model" in err


def test_a_folder_without_a_model(tmp_path, capsys):
    assert main(["slice", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
