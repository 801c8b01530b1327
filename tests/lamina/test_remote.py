"""An engine whose attention runs elsewhere gives the bits of one in a single process."""

import pytest
from tests.lamina.asking import answers, requests
from tests.small_models import write_model

from statepool.core.errors import InvalidConfig
from statepool.engine.request import Request


@pytest.mark.parametrize("batches", [1, 2, 3])
@pytest.mark.parametrize(
    ("workers", "split"), [(1, "heads"), (2, "heads"), (2, "request"), (2, "sequence"), (3, "sequence")]
)
def test_bits_are_those_of_one_process(engines, nodes, workers, split, batches):
    asked = list(requests(7, seed=workers, prefix=range(40, 90)))
    whole = answers(engines(), asked)
    apart = engines(attention_workers=",".join(nodes(workers)), attention_split=split, attention_batches=batches)
    assert answers(apart, asked) == whole
    assert answers(apart, asked) == whole, "from cached blocks"


@pytest.mark.parametrize("split", ["heads", "request", "sequence"])
def test_contexts_of_several_segments(engines, nodes, split):
    """Chunked prompts that cross segments of 1024 tokens, and a second request that shares their beginning."""
    asked = list(requests(2, seed=5, lengths=(1500, 2300), answer=4, prefix=range(3, 200)))
    more = list(requests(2, seed=6, lengths=(10, 30), answer=4, prefix=asked[0].prompt))
    settings = {"kv_bytes": 16 << 20, "max_batched_tokens": 200}
    whole, apart = engines(**settings), engines(attention_workers=",".join(nodes(2)), attention_split=split, **settings)
    for some in (asked, more):
        assert answers(apart, some) == answers(whole, some)


@pytest.mark.parametrize("quant", ["int4", "bf16", "fp32"])
def test_every_arithmetic(engines, nodes, quant):
    asked = list(requests(3, seed=2))
    settings = {"quant": quant, "kv_bytes": 8 << 20}
    assert answers(engines(attention_workers=",".join(nodes(2)), **settings), asked) == answers(
        engines(**settings), asked
    )


def test_biases_and_no_norms(engines, nodes, tmp_path):
    model = write_model(tmp_path / "qwen2", model_type="qwen2", head_dim=16)
    asked = list(requests(3, seed=3))
    apart = engines(model, attention_workers=",".join(nodes(2, "tcp")))
    assert answers(apart, asked) == answers(engines(model), asked)


@pytest.mark.parametrize("split", ["heads", "sequence"])
def test_a_full_pool_preempts_and_sessions_park(engines, nodes, split):
    """Sixteen blocks for requests that want more: what is evicted, parked, copied and computed again keeps its bits."""
    settings = {"kv_bytes": 16 * 8192, "max_seqs": 4, "max_batched_tokens": 32, "speculate": "ngram"}
    whole, apart = engines(**settings), engines(attention_workers=",".join(nodes(2)), attention_split=split, **settings)
    for turn in range(3):
        asked = [
            Request(f"t{turn}-{i}", tuple(range(10 + i, 50 + i + 20 * turn)), r.params, session=f"s{i}")
            for i, r in enumerate(requests(3, seed=turn))
        ]
        assert answers(apart, asked) == answers(whole, asked)


def test_state_moves_between_both_kinds(engines, nodes):
    (request,) = requests(1, seed=9, lengths=(50, 50))
    whole, apart = engines(), engines(attention_workers=",".join(nodes(2)))
    expected = answers(engines(), [request])
    for source, target in ((whole, apart), (apart, whole)):
        source.submit(request)
        outputs = [output for _ in range(5) for output in source.step()]
        target.import_state(source.export_state(request.id))
        while target.has_work:
            outputs += target.step()
        pairs = [pair for o in outputs for pair in zip(o.tokens, o.logprobs or [], strict=False)]
        assert pairs == expected[request.id]


def test_wrong_settings_are_named(engines, nodes):
    for settings, word in (
        ({"attention_workers": "0"}, "at least 1"),
        ({"attention_workers": "two"}, "unix:/path"),
        ({"attention_workers": "3", "attention_split": "heads"}, "cannot be divided"),
        ({"attention_workers": ",".join(nodes(1)), "attention_split": "rows"}, "attention_split"),
        ({"attention_workers": "1", "attention": "moba"}, "full attention"),
        ({"attention_workers": "1", "kv_budget": 1 << 20}, "kv_budget"),
        ({"attention_workers": "1", "backend": "torch"}, "native backend"),
    ):
        with pytest.raises(InvalidConfig, match=word):
            engines(**settings)
