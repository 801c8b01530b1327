"""A real server process: outside clients unmodified, cancellation, bad inputs, overload."""

import asyncio
import json
import random
import socket

import httpx
import pytest
from tests.e2e.conftest import PATIENCE

pytestmark = pytest.mark.e2e

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "size": {"enum": ["small", "large"]}},
    "required": ["city", "size"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look up a fact.",
        "parameters": {
            "type": "object",
            "properties": {"key": {"type": "string", "maxLength": 6}},
            "required": ["key"],
            "additionalProperties": False,
        },
    },
}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def openai_client(server):
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_client(server):
    import anthropic

    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_openai_chat_is_the_same_streamed_or_not(openai_client):
    fields = {"model": "random", "messages": HELLO, "max_tokens": 24, "seed": 7, "temperature": 0.8}
    whole = openai_client.chat.completions.create(**fields, logprobs=True, top_logprobs=3, n=2)
    assert whole.choices[0].message.content != whole.choices[1].message.content
    assert all(len(entry.top_logprobs) == 3 for entry in whole.choices[0].logprobs.content)
    text, usage, finish = "", None, None
    for chunk in openai_client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
    assert text == whole.choices[0].message.content
    assert finish == whole.choices[0].finish_reason
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert usage.prompt_tokens_details.cached_tokens > 0, "the same prompt is in the pool by now"


def test_openai_json_schema_always_closes(openai_client):
    import jsonschema

    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    for seed, budget in enumerate((60, 80, 120)):
        answer = openai_client.chat.completions.create(
            model="random", messages=HELLO, max_tokens=budget, seed=seed, response_format=form
        )
        assert answer.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)


def test_openai_tool_calls(openai_client):
    fields = {"model": "random", "messages": HELLO, "tools": [TOOL], "max_tokens": 80, "seed": 3}
    named = {"type": "function", "function": {"name": "look_up"}}
    for choice in ("required", named):
        answer = openai_client.chat.completions.create(**fields, tool_choice=choice)
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls"
        assert call.function.name == "look_up"
        assert list(json.loads(call.function.arguments)) == ["key"]
        name, arguments = "", ""
        for chunk in openai_client.chat.completions.create(**fields, tool_choice=choice, stream=True):
            for delta in chunk.choices[0].delta.tool_calls or []:
                name += delta.function.name or ""
                arguments += delta.function.arguments or ""
        assert (name, arguments) == ("look_up", call.function.arguments)


def test_openai_responses(openai_client):
    first = openai_client.responses.create(model="random", input="hello", max_output_tokens=12)
    assert first.usage.output_tokens <= 12
    with openai_client.responses.stream(
        model="random", input="go on", previous_response_id=first.id, max_output_tokens=12
    ) as stream:
        events = list(stream)
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    final = events[-1].response
    assert final.previous_response_id == first.id
    assert openai_client.responses.retrieve(final.id).output_text == final.output_text
    tool = {"type": "function", "strict": True, **TOOL["function"]}
    called = openai_client.responses.create(
        model="random", input="look", tools=[tool], tool_choice="required", max_output_tokens=80
    )
    assert called.output[-1].type == "function_call"
    text = {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA}}
    formed = openai_client.responses.create(model="random", input="where", text=text, max_output_tokens=80)
    assert set(json.loads(formed.output_text)) == {"city", "size"}


def test_openai_embeddings_and_models(openai_client):
    vectors = openai_client.embeddings.create(model="random", input=["one", "two"])
    assert len(vectors.data[0].embedding) == 64
    assert sum(x * x for x in vectors.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert [model.id for model in openai_client.models.list()] == ["random"]


def test_openai_errors_are_its_own_classes(openai_client):
    import openai

    with pytest.raises(openai.NotFoundError):
        openai_client.chat.completions.create(model="gpt-0", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.chat.completions.create(model="random", messages=[{"role": "user", "content": "x" * 5000}])
    assert caught.value.code == "context_length_exceeded"


def test_lm_eval_needs_no_tokenizer_of_its_own(server):
    """``tokenizer_backend=remote`` of lm-eval 0.4.13: the id of the end token, then ids to score and back."""
    info = server.http.get("/tokenizer_info").json()
    tokenize = {"prompt": info["eos_token"], "add_special_tokens": False}
    (start,) = server.http.post("/tokenize", json=tokenize).json()["tokens"]
    text = server.http.post("/tokenize", json={"prompt": "two words", "add_special_tokens": False}).json()["tokens"]
    body = {"model": "random", "prompt": [[start, *text]], "temperature": 0, "max_tokens": 1, "logprobs": 1}
    (choice,) = server.http.post("/v1/completions", json={**body, "seed": 1234, "echo": True}).json()["choices"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert len(choice["logprobs"]["token_logprobs"]) == 1 + len(text) + 1
    assert server.http.post("/detokenize", json={"tokens": text}).json() == {"prompt": "two words"}


def test_scoring_as_lm_eval_does(server):
    """Prompt log-probabilities equal those reported when the same tokens were generated."""
    body = {"prompt": "hello", "max_tokens": 12, "logprobs": 1, "return_token_ids": True, "seed": 1, "ignore_eos": True}
    made = server.http.post("/v1/completions", json=body).json()["choices"][0]
    tokens = made["prompt_token_ids"] + made["token_ids"]
    body = {"prompt": tokens, "max_tokens": 0, "echo": True, "logprobs": 1}
    scored = server.http.post("/v1/completions", json=body).json()["choices"][0]
    assert scored["logprobs"]["token_logprobs"][-12:] == made["logprobs"]["token_logprobs"]
    assert scored["logprobs"]["token_logprobs"][0] is None
    for token, top in zip(scored["logprobs"]["tokens"][1:], scored["logprobs"]["top_logprobs"][1:], strict=True):
        assert token in top


def test_anthropic_messages(anthropic_client):
    message = anthropic_client.messages.create(model="random", max_tokens=16, messages=HELLO)
    assert message.stop_reason in ("max_tokens", "end_turn")
    with anthropic_client.messages.stream(model="random", max_tokens=16, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.content[0].text == text
    assert final.usage.cache_read_input_tokens > 0
    counted = anthropic_client.messages.count_tokens(model="random", messages=HELLO)
    assert counted.input_tokens == final.usage.input_tokens + final.usage.cache_read_input_tokens
    tool = {"name": "look_up", "input_schema": TOOL["function"]["parameters"]}
    called = anthropic_client.messages.create(
        model="random", max_tokens=80, messages=HELLO, tools=[tool], tool_choice={"type": "any"}
    )
    assert called.stop_reason == "tool_use"
    assert list(called.content[0].input) == ["key"]


def test_anthropic_errors_are_its_own_classes(anthropic_client):
    import anthropic

    with pytest.raises(anthropic.NotFoundError):
        anthropic_client.messages.create(model="claude", max_tokens=5, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        anthropic_client.messages.create(model="random", max_tokens=5, messages=HELLO, extra_body={"temperature": -1})


def endless(**changes):
    return {"prompt": "hello", "max_tokens": 3500, "ignore_eos": True, "stream": True, **changes}


def test_a_client_that_leaves_frees_its_blocks(server):
    with httpx.stream("POST", f"{server.url}/v1/completions", json=endless(n=2), timeout=PATIENCE) as response:
        lines = response.iter_lines()
        next(lines)
        server.wait_until(lambda: server.metric("requests_running") == 2)
    server.wait_until(server.all_free)


def test_a_client_that_leaves_before_the_answer_frees_its_blocks(server):
    host, port = server.url.removeprefix("http://").split(":")
    before = server.metric("aborted_total")
    body = json.dumps(endless(stream=False)).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        server.wait_until(lambda: server.metric("requests_running") == 1)
    server.wait_until(lambda: server.metric("aborted_total") == before + 1)
    server.wait_until(server.all_free)


async def crowd(server, clients, tokens, seed):
    """``clients`` streams at once, half of which leave at a random chunk; returns how many ended well."""
    dice = random.Random(seed)

    async def one(http, number):
        leave = dice.randrange(1, tokens // 2) if number % 2 else None
        body = endless(max_tokens=tokens, prompt=f"client {number} ", seed=number)
        async with http.stream("POST", f"{server.url}/v1/completions", json=body) as response:
            assert response.status_code == 200
            chunks = 0
            async for line in response.aiter_lines():
                chunks += line.startswith("data: {")
                if leave is not None and chunks >= leave:
                    return False
                if line == "data: [DONE]":
                    return True
        raise AssertionError("the stream ended without [DONE]")

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=240, limits=limits) as http:
        return sum(await asyncio.gather(*(one(http, number) for number in range(clients))))


async def test_64_streams_of_which_half_disconnect(server):
    assert await crowd(server, clients=64, tokens=16, seed=0) == 32
    server.wait_until(server.all_free)


@pytest.mark.slow
async def test_crowds_for_a_while_leave_nothing_behind(server):
    for seed in range(8):
        assert await crowd(server, clients=64, tokens=48, seed=seed) == 32
        server.wait_until(server.all_free)


BAD_BODIES = {
    "malformed": b'{"prompt": "x"',
    "nan": b'{"prompt": "x", "temperature": NaN}',
    "surrogate": b'{"prompt": "\\ud800"}',
    "not utf-8": b'{"prompt": "\xff"}',
    "deep": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "empty prompt": b'{"prompt": ""}',
    "no prompts": b'{"prompt": []}',
    "token beyond": b'{"prompt": [100000]}',
    "negative token": b'{"prompt": [-1]}',
    "huge temperature": b'{"prompt": "x", "temperature": 1e999}',
    "logprobs 21": b'{"prompt": "x", "logprobs": 21}',
    "long stop": json.dumps({"prompt": "x", "stop": "s" * 1_000_000}).encode(),
    "recursive schema": json.dumps(
        {"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}}
    ).encode(),
    "impossible schema": json.dumps(
        {"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}
    ).encode(),
    "no room for the document": json.dumps(
        {
            "prompt": "x",
            "max_tokens": 3,
            "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
        }
    ).encode(),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_input_is_one_clear_error(server, name):
    headers = {"content-type": "application/json"}
    response = server.http.post("/v1/completions", content=BAD_BODIES[name], headers=headers)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert len(response.content) < 2000


def test_odd_but_valid_input_is_answered(server):
    for change in ({"stop": ["a", "a"]}, {"n": 3}, {"prompt": "\x00\U0001f600"}, {"min_tokens": 5}, {"top_k": -1}):
        body = {"prompt": "x", "max_tokens": 3, **change}
        response = server.http.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text


def test_a_prompt_of_10_mb_is_refused(server):
    body = {"prompt": "x" * (10 << 20)}
    response = server.http.post("/v1/completions", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "payload_too_large")


def test_the_longest_prompt_is_served_and_one_more_token_is_not(server):
    exact = {"prompt": [5] * 4095, "max_tokens": 5, "ignore_eos": True}
    choice = server.http.post("/v1/completions", json=exact).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    over = server.http.post("/v1/completions", json={"prompt": [5] * 4096})
    assert over.json()["error"]["code"] == "context_length_exceeded"


def test_a_session_goes_on_where_it_was(server):
    first = {"messages": HELLO, "max_tokens": 20, "seed": 1, "session": "s1", "return_token_ids": True}
    made = server.http.post("/v1/chat/completions", json=first).json()
    assert [s["id"] for s in server.http.get("/v1/sessions").json()["data"]] == ["s1"]
    tokens = made["prompt_token_ids"] + made["choices"][0]["token_ids"]
    again = {"prompt": [*tokens, 65], "max_tokens": 1, "session": "s1"}
    usage = server.http.post("/v1/completions", json=again).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= len(tokens) - 1
    assert server.http.delete("/v1/sessions/s1").json()["deleted"]


def test_salt_keeps_tenants_apart(server):
    body = {"prompt": "a prompt that is longer than one block of tokens", "max_tokens": 1}

    def cached(salt):
        usage = server.http.post("/v1/completions", json={**body, "cache_salt": salt}).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    assert [cached("a"), cached("a") > 0, cached("b")] == [0, True, 0]
