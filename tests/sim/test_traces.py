"""Traces: what is read, and that no bad row becomes a result."""

import random

import pytest

from statepool import cli
from statepool.sim.traces import Call, InvalidTrace, jittered, quantum, read_trace, sped_up


def row(at=0, prompt=1000, output=10, ids=(0, 1), **more):
    return {"timestamp": at, "input_length": prompt, "output_length": output, "hash_ids": list(ids), **more}


def test_mooncake_rows_become_calls(trace_file):
    path = trace_file(row(2000), row(2000, 1500, 3, (0, 1, 2)), row(3500, 512, 1, (0,)))
    assert read_trace(path) == [
        Call(0.0, 1000, 10, (0, 1)),
        Call(0.0, 1500, 3, (0, 1, 2)),
        Call(1.5, 512, 1, (0,)),
    ]


def test_azure_rows_become_calls(trace_file):
    path = trace_file(
        "TIMESTAMP,ContextTokens,GeneratedTokens\r",
        "2023-11-16 18:17:03.9799600,4808,10\r",
        "2023-11-16 18:17:04.0319600,3180,8",
        name="azure.csv",
    )
    first, second = read_trace(path)
    assert (first.prompt, first.output, first.keys) == (4808, 10, ())
    assert second.at == pytest.approx(0.052, abs=1e-6)


BAD = [
    ('{"timestamp": NaN, "input_length": 1000, "output_length": 1, "hash_ids": [0, 1]}', "is not a request"),
    ('{"timestamp": 1e999, "input_length": 1000, "output_length": 1, "hash_ids": [0, 1]}', "row 2"),
    ('{"timestamp": 5, "input_length": 1000, "hash_ids": [0, 1]}', "output_length"),
    ('{"timestamp": 5, "input_length": 1000.5, "output_length": 1, "hash_ids": [0, 1]}', "is not a request"),
    ('{"timestamp": 5, "input_length": true, "output_length": 1, "hash_ids": [0, 1]}', "is not a request"),
    ("[1, 2]", "is not a request"),
    ("\udcff", "is not a request"),
    (row(-5), "timestamp -5"),
    (row(3), "is earlier"),
    (row(9, prompt=0, ids=()), "prompt of 0 tokens"),
    (row(9, prompt=-4, ids=()), "prompt of -4 tokens"),
    (row(9, output=0), "answer of 0 tokens"),
    (row(9, prompt=10**12, ids=(0,)), "must be from 1 to"),
    (row(9, ids=(0,)), "has 1 hash_ids for 1000 tokens, not 2"),
    (row(9, ids=range(10, 73)), "read it with --block 16"),
    (row(9, ids=(0, 0)), "names a block twice"),
    (row(9, ids=(0, -1)), "block number -1"),
    (row(9, ids=(4, 1)), "after another prefix"),
    (row(9, ids=(0, 1), junk="x" * (10 << 20)), "is longer than"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_row_is_one_line_with_its_number(bad, message, tmp_path, trace_file, capsys):
    path = trace_file(row(5))
    with path.open("ab") as file:
        text = bad if isinstance(bad, str) else __import__("json").dumps(bad)
        file.write(text.encode("utf-8", errors="surrogateescape") + b"\n")
    assert cli.main(["simulate", str(path)]) == 2
    said = capsys.readouterr()
    assert "row 2" in said.err
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,b,c"], "row 1 must be the header"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:17:03.9,1"], "row 2 has 2 cells"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens", "yesterday,1,1"], "row 2 is not a request"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:17:03.9,1,nan"], "row 2 is not a request"),
        (
            [
                "TIMESTAMP,ContextTokens,GeneratedTokens",
                "2023-11-16 18:17:03.9,1,1",
                "2023-11-16 18:17:03.8,1,1",
            ],
            "row 3 is earlier",
        ),
        (["TIMESTAMP,ContextTokens,GeneratedTokens"], "has no rows"),
    ],
)
def test_bad_azure_files(lines, message, trace_file):
    with pytest.raises(InvalidTrace, match=message):
        read_trace(trace_file(*lines, name="azure.csv"))


def test_other_files_and_speeds(trace_file, tmp_path):
    with pytest.raises(InvalidTrace, match=r"is a \.jsonl"):
        read_trace(tmp_path / "trace.parquet")
    with pytest.raises(InvalidTrace, match="has no rows"):
        read_trace(trace_file(""))
    for speed in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InvalidTrace, match="speed"):
            sped_up([], speed)


def test_rounded_timestamps_are_noticed_and_spread():
    draw = random.Random(1)
    exact = sorted(draw.uniform(0, 300) for _ in range(1000))
    rounded = [Call(at // 3 * 3, 100, 1) for at in exact]
    assert quantum(rounded) == pytest.approx(3)
    assert quantum([Call(at, 100, 1) for at in exact]) == 0
    spread = jittered(rounded, 3, seed=4)
    assert [call.at for call in spread] == sorted(call.at for call in spread)
    assert len({call.at for call in spread}) == 1000
    assert sorted(call.at // 3 * 3 for call in spread) == sorted(call.at for call in rounded)
    assert spread == jittered(rounded, 3, seed=4) != jittered(rounded, 3, seed=5)
    assert sped_up(rounded, 2)[-1].at == rounded[-1].at / 2
