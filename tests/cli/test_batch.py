"""Offline batches: reading prompts, writing results, going on after a kill."""

import json

import pytest

from statepool import batch
from statepool.core.errors import InvalidRequest
from statepool.engine.request import SamplingParams

DEFAULTS = SamplingParams(max_tokens=100, temperature=0.0, seed=0)


@pytest.fixture
def write(tmp_path):
    def make(*lines):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    return make


def results(path):
    return {entry["id"]: entry for entry in map(json.loads, path.read_text().splitlines())}


def test_ids_default_to_line_numbers_and_blank_lines_are_skipped(write):
    prompts = list(batch.read_prompts(write({"prompt": "a"}, "", {"id": "x", "prompt_token_ids": [1], "top_k": 3})))
    assert [(p.id, p.source, p.content, p.fields) for p in prompts] == [
        ("1", "prompt", "a", {}),
        ("x", "prompt_token_ids", [1], {"top_k": 3}),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 1 is not JSON"),
        (["[1]"], "must be an object"),
        ([{"id": 1}], "exactly one of prompt, prompt_token_ids, messages"),
        ([{"prompt": "a", "messages": []}], "exactly one of"),
        ([{"prompt": "a", "id": 2}, {"prompt": "b"}], "line 2: id '2' appears twice"),
        ([{"prompt": "a", "max_token": 1}], "unknown field 'max_token'"),
    ],
)
def test_bad_lines_are_named(write, lines, message):
    with pytest.raises(InvalidRequest, match=message):
        list(batch.read_prompts(write(*lines)))


def test_every_prompt_gets_one_result(engine, write, tmp_path):
    out = tmp_path / "out.jsonl"
    prompts = list(
        batch.read_prompts(
            write(
                {"prompt": "abc"},
                {"prompt_token_ids": engine.tokenizer.encode("hi"), "seed": 7},
                {"messages": [{"role": "user", "content": "x"}]},
                {"prompt": "long" * 9, "max_tokens": 3},
                *({"prompt": "z" * size} for size in range(1, 20)),
            )
        )
    )
    seen = []
    total = batch.run(engine, prompts, out, DEFAULTS, seen.append)
    found = results(out)
    assert len(found) == total.finished == 23
    assert [found[name]["text"] for name in "1234"] == ["cba", "ih", "]x:resu[", "gno"]
    assert found["2"]["seed"] == 7
    assert found["4"]["finish_reason"] == "length"
    assert found["1"]["usage"]["prompt_tokens"] == 3
    assert found["1"]["token_ids"] == engine.tokenizer.encode("cba")
    assert total.tokens == sum(len(entry["token_ids"]) for entry in found.values())
    assert engine.most_open == 4
    assert seen[-1] == total


def test_a_refused_prompt_does_not_stop_the_others(engine, write, tmp_path):
    out = tmp_path / "out.jsonl"
    lines = [
        {"prompt": ""},
        {"prompt": "ab"},
        {"prompt": 3},
        {"prompt_token_ids": "x"},
        {"prompt": "a", "top_p": 7},
        {"messages": []},
        {"prompt": "a", "grammar": {"kid": 1}},
        {"prompt": "a", "logit_bias": {"x": 1}},
        {"prompt": "a", "stop": 3},
    ]
    total = batch.run(engine, list(batch.read_prompts(write(*lines))), out, DEFAULTS)
    found = results(out)
    assert (total.finished, total.refused) == (1, 8)
    assert found["2"]["text"] == "ba"
    assert "top_p must be between" in found["5"]["error"]
    assert all("error" in found[name] for name in "1345679")


def test_a_second_run_skips_what_is_there_and_repairs_a_torn_line(engine, write, tmp_path):
    out = tmp_path / "out.jsonl"
    assert batch.finished_ids(out) == set()
    prompts = list(batch.read_prompts(write({"prompt": "ab"}, {"prompt": "cd"})))
    batch.run(engine, prompts[:1], out, DEFAULTS)
    whole = out.read_bytes()
    out.write_bytes(whole + b'{"id": "2", "te')
    assert batch.finished_ids(out) == {"1"}
    assert out.read_bytes() == whole
    batch.run(engine, prompts[1:], out, DEFAULTS)
    assert set(results(out)) == {"1", "2"}


@pytest.mark.parametrize("text", ["notes\n", "[1]\n", '{"text": 1}\n'])
def test_a_foreign_file_is_not_appended_to(tmp_path, text):
    out = tmp_path / "out.jsonl"
    out.write_text(text)
    with pytest.raises(InvalidRequest, match="name another --out"):
        batch.finished_ids(out)
    assert out.read_text() == text
