"""An engine whose attention runs elsewhere gives the bits of one in a single process."""

import json
import socket
from contextlib import suppress

import pytest
from tests.lamina.asking import answers, requests
from tests.small_models import write_model

from statepool.cli import main
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


@pytest.mark.parametrize(("workers", "here", "batches"), [(1, 1, 1), (1, 3, 2), (2, 2, 2), (3, 1, 3)])
def test_heads_that_stay_with_the_model_change_no_bit(engines, nodes, tmp_path, workers, here, batches):
    model = write_model(tmp_path / "four", num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=4096)
    asked = list(requests(5, seed=here, prefix=range(40, 90)))
    settings = {"kv_bytes": 8 << 20, "max_batched_tokens": 64}
    whole = answers(engines(model, **settings), asked)
    addresses = nodes(workers)
    apart = engines(
        model, attention_workers=",".join(addresses), attention_here=here, attention_batches=batches, **settings
    )
    assert answers(apart, asked) == whole
    assert answers(apart, asked) == whole, "from cached blocks"
    apart.runner.write_blocks([3, 5], apart.runner.read_blocks([5, 3]))
    apart.runner.write_blocks([3, 5], apart.runner.read_blocks([5, 3]))
    assert answers(apart, asked) == whole, "blocks were exchanged and exchanged back"


def test_a_number_of_heads_that_cannot_stay_is_named(engines, nodes):
    for here, split in ((2, "heads"), (1, "sequence"), (-1, "heads")):
        with pytest.raises(InvalidConfig, match="attention_here"):
            engines(attention_workers=",".join(nodes(1)), attention_here=here, attention_split=split)
    with pytest.raises(InvalidConfig, match="attention_here"):
        engines(attention_here=1)


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


def test_blocks_come_in_while_steps_go_on(engines, nodes):
    """A long context arrives beside a running request, which is answered meanwhile; both keep their bits."""
    (short,) = requests(1, seed=21, lengths=(20, 20), answer=60)
    long = Request("long", tuple(3 + i % 250 for i in range(1500)), short.params)
    settings = {"kv_bytes": 16 << 20, "max_model_len": 2048}
    source, whole = engines(**settings), engines(**settings)
    expected = answers(whole, [short, long])
    source.submit(long)
    outputs = {"long": []}
    while not outputs["long"]:
        outputs["long"] += source.step()
    state = source.export_state("long")
    apart = engines(attention_workers=",".join(nodes(2)), **settings)
    apart.submit(short)
    outputs["r0"] = [output for _ in range(3) for output in apart.step()]
    apart.import_state(state)
    while apart.has_work:
        for output in apart.step():
            outputs[output.id].append(output)
    found = {
        name: [pair for output in all_ for pair in zip(output.tokens, output.logprobs or [], strict=False)]
        for name, all_ in outputs.items()
    }
    assert found == expected
    for node in nodes.running:
        figures = node.figures()
        assert figures.in_gaps + figures.in_steps >= 2 * 94 * 2048 // (256 << 10), "all pieces came by that road"
        assert figures.answers > 0


def test_a_stranger_does_not_replace_the_model_worker(engines, nodes):
    (request,) = requests(1, seed=22, lengths=(30, 30))
    (address,) = nodes(1)
    apart = engines(attention_workers=address)
    apart.submit(request)
    outputs = apart.step()
    for words in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(40)):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(address.removeprefix("unix:"))
            stranger.sendall(words)
            stranger.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                while stranger.recv(4096):
                    pass
    while apart.has_work:
        outputs += apart.step()
    assert [t for o in outputs for t in o.tokens] == [t for t, _ in answers(engines(), [request])[request.id]]
    assert apart.stats().attention_workers_lost == 0


def test_stats_of_workers(engines, nodes, capsys):
    addresses = nodes(2)
    (request,) = requests(1, seed=23, lengths=(40, 40))
    answers(engines(attention_workers=",".join(addresses)), [request])
    assert main(["attention", "stats", *addresses, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["address"] for each in found] == addresses
    assert all(each["answers"] > 0 and each["blocks"] == 512 for each in found)
    assert main(["attention", "stats", addresses[0]]) == 0
    assert "512 blocks" in capsys.readouterr().out
    assert main(["attention", "stats", "unix:/nowhere"]) == 2
    assert "no attention worker answers" in capsys.readouterr().err
