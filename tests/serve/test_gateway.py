"""Endpoints over the echo engine: shapes on the wire, failures in the clients' dialects."""

import json
from dataclasses import replace

import pytest
import pytest_asyncio
from tests.small_models import TEMPLATE

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(start_gateway):
    """(client, state) of one gateway with default settings."""
    async with start_gateway() as pair:
        yield pair


def events(response):
    """(name, data) of every server-sent event; ``[DONE]`` as text."""
    found = []
    for block in response.text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        data = lines["data"]
        found.append((lines.get("event"), data if data == "[DONE]" else json.loads(data)))
    return found


def chat(text, **fields):
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **fields}


TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}


async def test_chat_stream_has_the_shape_clients_rely_on(gateway):
    client, _ = gateway
    body = chat("{{hey}}", stream=True, stream_options={"include_usage": True})
    response = await client.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = [data for _, data in events(response)]
    assert chunks[-1] == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-2]) == "hey"
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-2]] == [None] * 4 + ["stop"]
    assert chunks[-2]["choices"] == []
    usage = chunks[-2]["usage"]
    assert usage["completion_tokens"] == 3
    assert usage["total_tokens"] == usage["prompt_tokens"] + 3
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] // 16 * 16
    assert len({c["id"] for c in chunks[:-1]}) == 1


async def test_chat_n_logprobs_and_token_ids(gateway, served):
    client, _ = gateway
    body = chat("{{ab}}", n=3, logprobs=True, top_logprobs=1, return_token_ids=True)
    answer = (await client.post("/v1/chat/completions", json=body)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    first = answer["choices"][0]
    assert [entry["token"] for entry in first["logprobs"]["content"]] == ["a", "b"]
    assert first["logprobs"]["content"][0]["bytes"] == [97]
    assert first["token_ids"] == served.encode("ab")
    again = chat("ignored", prompt_token_ids=answer["prompt_token_ids"])
    assert (await client.post("/v1/chat/completions", json=again)).json()["choices"][0]["message"]["content"] == "ab"
    assert answer["usage"]["completion_tokens"] == 6


async def test_stop_strings_and_length(gateway):
    client, _ = gateway
    stopped = (await client.post("/v1/chat/completions", json=chat("{{one two}}", stop=" t"))).json()
    assert stopped["choices"][0]["message"]["content"] == "one"
    assert stopped["choices"][0]["stop_reason"] == " t"
    cut = (await client.post("/v1/chat/completions", json=chat("{{abcdef}}", max_completion_tokens=2))).json()
    assert cut["choices"][0]["finish_reason"] == "length"


async def test_named_tool_choice(gateway):
    client, _ = gateway
    choice = {"type": "function", "function": {"name": "look"}}
    body = chat('{{{"at": "sky"}}}', tools=[TOOL], tool_choice=choice)
    message = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]
    assert message["finish_reason"] == "tool_calls"
    assert message["message"]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at": "sky"}'[:-1]}


async def test_required_tool_choice_streams_arguments(gateway):
    client, _ = gateway
    body = chat('{{{"name": "look", "arguments": {"at": "x"}} }}', tools=[TOOL], tool_choice="required", stream=True)
    chunks = [data for _, data in events(await client.post("/v1/chat/completions", json=body))][:-1]
    deltas = [c["choices"][0]["delta"]["tool_calls"][0] for c in chunks if "tool_calls" in c["choices"][0]["delta"]]
    assert deltas[0]["function"]["name"] == "look"
    assert deltas[0]["id"].startswith("call_")
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("form", "answer"),
    [
        ("mistral", '[TOOL_CALLS]look[ARGS]{"at": "sky"}'),
        ("mistral", '[TOOL_CALLS] [{"name": "look", "arguments": {"at": "sky"} }]'),
        ("llama3", '<|python_tag|>{"name": "look", "parameters": {"at": "sky"} }'),
        ("pythonic", '<|python_start|>[look(at="sky")]<|python_end|>'),
    ],
)
async def test_calls_marked_by_special_tokens(gateway, monkeypatch, form, answer, stream):
    client, state = gateway
    monkeypatch.setattr(state, "model", replace(state.model, tool_format=form))
    body = chat("{{" + answer + " }}", tools=[TOOL], stream=stream)
    response = await client.post("/v1/chat/completions", json=body)
    if stream:
        chunks = [data for _, data in events(response)][:-1]
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", [])]
        assert "".join(delta.get("content", "") for delta in deltas) == ""
        assert calls == [{"name": "look", "arguments": ""}, {"arguments": '{"at": "sky"}'}]
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    else:
        choice = response.json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at": "sky"}'}


async def test_special_tokens_are_text_only_if_asked_for(gateway):
    client, _ = gateway
    for fields, text in (({}, "ab"), ({"skip_special_tokens": False}, "a[ARGS]b")):
        answer = (await client.post("/v1/chat/completions", json=chat("{{a[ARGS]b}}", **fields))).json()
        assert answer["choices"][0]["message"]["content"] == text
        body = {"prompt": "{{a[ARGS]b}}", "max_tokens": 9, **fields}
        assert (await client.post("/v1/completions", json=body)).json()["choices"][0]["text"] == text


async def test_completion_echo_and_scores(gateway):
    client, _ = gateway
    body = {"prompt": "{{xy}} ab", "max_tokens": 0, "echo": True, "logprobs": 1}
    choice = (await client.post("/v1/completions", json=body)).json()["choices"][0]
    assert choice["text"] == "{{xy}} ab"
    assert choice["logprobs"]["token_logprobs"] == [None] + [-2.0] * 8
    assert choice["logprobs"]["text_offset"] == list(range(9))
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    body = {"prompt": "{{xy}} ab", "max_tokens": 5, "echo": True, "logprobs": 1, "stream": True}
    chunks = [data for _, data in events(await client.post("/v1/completions", json=body))][:-1]
    assert "".join(c["choices"][0]["text"] for c in chunks) == "{{xy}} abxy"
    offsets = [offset for c in chunks for offset in c["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == list(range(11))


@pytest.mark.parametrize("prompt", ["{{q}}", ["{{q}}", "{{q}}"], [10, 11], [[10], [11, 12]]])
async def test_completion_prompts_of_every_kind(gateway, prompt):
    client, _ = gateway
    answer = (await client.post("/v1/completions", json={"prompt": prompt, "n": 2})).json()
    prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * prompts))


async def test_responses_events_and_continuation(gateway):
    client, state = gateway
    first = await client.post("/v1/responses", json={"input": "{{hi}}", "stream": True})
    named = events(first)
    assert [name for name, _ in named] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [data["sequence_number"] for _, data in named] == list(range(10))
    done = named[-1][1]["response"]
    assert done["output"][0]["content"][0]["text"] == "hi"
    body = {"input": "and {{more}}", "previous_response_id": done["id"], "instructions": "be brief"}
    second = (await client.post("/v1/responses", json=body)).json()
    assert second["usage"]["input_tokens"] > done["usage"]["input_tokens"]
    assert [m["role"] for m in state.responses.get(second["id"]).messages] == ["user", "assistant"] * 2
    assert (await client.get(f"/v1/responses/{second['id']}")).json() == second
    assert (await client.delete(f"/v1/responses/{second['id']}")).json()["deleted"]
    assert (await client.get(f"/v1/responses/{second['id']}")).status_code == 404
    cut = (await client.post("/v1/responses", json={"input": "{{abc}}", "max_output_tokens": 1})).json()
    assert cut["status"] == "incomplete"
    unstored = (await client.post("/v1/responses", json={"input": "{{abc}}", "store": False})).json()
    assert (await client.get(f"/v1/responses/{unstored['id']}")).status_code == 404


async def test_responses_function_calls(gateway):
    client, _ = gateway
    tool = {"type": "function", **TOOL["function"]}
    body = {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "where?"}]},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "sea"}'},
            {"type": "function_call_output", "call_id": "c1", "output": '{{{"at": 1 }}}'},
        ],
        "tools": [tool],
        "tool_choice": {"type": "function", "name": "look"},
        "stream": True,
    }
    named = events(await client.post("/v1/responses", json=body))
    item = named[-1][1]["response"]["output"][0]
    assert (item["type"], item["name"]) == ("function_call", "look")
    deltas = [d["delta"] for n, d in named if n == "response.function_call_arguments.delta"]
    assert "".join(deltas) == item["arguments"]


async def test_anthropic_messages(gateway):
    client, _ = gateway
    body = {"model": "echo", "max_tokens": 9, "system": "s", "messages": [{"role": "user", "content": "{{yes}}"}]}
    answer = (await client.post("/v1/messages", json=body)).json()
    assert answer["content"] == [{"type": "text", "text": "yes"}]
    assert answer["stop_reason"] == "end_turn"
    named = events(await client.post("/v1/messages", json={**body, "stream": True}))
    assert [name for name, _ in named] == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    usage = answer["usage"]
    counted = (await client.post("/v1/messages/count_tokens", json={**body})).json()["input_tokens"]
    assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"]
    stopped = (await client.post("/v1/messages", json={**body, "stop_sequences": ["e"]})).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "e")


async def test_anthropic_prefill_is_the_beginning_of_the_answer(gateway):
    client, state = gateway
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the {{rest}}"}]
    body = {"model": "echo", "max_tokens": 9, "messages": messages}
    count = (await client.post("/v1/messages/count_tokens", json=body)).json()["input_tokens"]
    rendered = state.model.encode_messages([messages[0]], None)
    assert count == len(rendered) + len("the {{rest}}")
    assert (await client.post("/v1/messages", json=body)).json()["content"][0]["text"] == "rest"


async def test_anthropic_tools(gateway):
    client, _ = gateway
    body = {
        "model": "echo",
        "max_tokens": 50,
        "tools": [{"name": "look", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any"},
        "messages": [
            {"role": "user", "content": "look"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "look", "input": {"a": 1}}]},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": "blue"},
                    {"type": "text", "text": '{{{"name":"look","arguments":{"at":2}} }}'},
                ],
            },
        ],
    }
    answer = (await client.post("/v1/messages", json=body)).json()
    assert answer["stop_reason"] == "tool_use"
    assert (answer["content"][0]["name"], answer["content"][0]["type"]) == ("look", "tool_use")


async def test_tokenize_round_trip_and_models(gateway):
    client, _ = gateway
    tokens = (await client.post("/tokenize", json={"prompt": "héllo"})).json()
    assert tokens["count"] == 6
    assert (await client.post("/detokenize", json={"tokens": tokens["tokens"]})).json() == {"prompt": "héllo"}
    listed = (await client.get("/v1/models")).json()["data"][0]
    assert (listed["id"], listed["max_model_len"]) == ("echo", 1024)
    assert (await client.get("/v1/models/echo")).json() == listed


async def test_the_tokenizer_can_be_used_without_its_files(gateway):
    """What lm-eval's ``tokenizer_backend=remote`` asks, in its order."""
    client, _ = gateway
    info = (await client.get("/tokenizer_info")).json()
    assert (info["eos_token"], info["bos_token"], info["pad_token"]) == ("<|im_end|>", None, None)
    assert info["chat_template"] == TEMPLATE
    body = {"prompt": info["eos_token"], "add_special_tokens": False}
    assert (await client.post("/tokenize", json=body)).json()["tokens"] == [257]
    inside = (await client.post("/tokenize", json={"prompt": "a<|im_end|>"})).json()["tokens"]
    assert 257 not in inside
    assert len(inside) == len("a<|im_end|>")


async def test_embeddings_as_floats_and_base64(gateway):
    import base64

    import numpy as np

    client, _ = gateway
    plain = (await client.post("/v1/embeddings", json={"input": ["ab", "c"]})).json()
    packed = (await client.post("/v1/embeddings", json={"input": ["ab", "c"], "encoding_format": "base64"})).json()
    for one, other in zip(plain["data"], packed["data"], strict=True):
        assert np.frombuffer(base64.b64decode(other["embedding"]), "<f4").tolist() == one["embedding"]
    assert plain["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


async def test_sessions_by_name(gateway):
    client, _ = gateway
    await client.post("/v1/chat/completions", json=chat("{{a}}", session="trip", cache_salt="s"))
    assert (await client.get("/v1/sessions")).json()["data"] == []
    assert (await client.post("/v1/sessions/trip/fork?cache_salt=s", json={"name": "side"})).json()["id"] == "side"
    listed = (await client.get("/v1/sessions?cache_salt=s")).json()["data"]
    assert [entry["id"] for entry in listed] == ["trip", "side"]
    assert (await client.delete("/v1/sessions/trip?cache_salt=s")).json()["deleted"]
    assert (await client.delete("/v1/sessions/trip?cache_salt=s")).status_code == 404


async def test_trainer_endpoints(gateway):
    client, state = gateway
    assert (await client.get("/get_world_size")).json() == {"world_size": 1}
    assert (await client.post("/pause?mode=keep")).status_code == 200
    assert (await state.engine.refresh_stats()).paused
    assert (await client.post("/start_weight_update", json={"is_checkpoint_format": True})).status_code == 200
    missing = await client.post("/update_weights", json={"update_info": {"path": "/nowhere"}})
    assert missing.status_code == 400
    assert missing.json()["error"]["param"] == "update_info.path"
    nccl = {"init_info": {"master_address": "h", "master_port": 1}}
    assert (await client.post("/init_weight_transfer_engine", json=nccl)).status_code == 400
    assert (await client.post("/finish_weight_update")).status_code == 200
    assert (await client.post("/resume")).status_code == 200


async def test_metrics_have_their_names(start_gateway):
    async with start_gateway(vllm_metric_names=True) as (client, _):
        await client.post("/v1/chat/completions", json=chat("{{abc}}"))
        text = (await client.get("/metrics")).text
        for name in ("requests_running", "kv_cache_usage_perc", "prefix_hit_tokens_total", "preemptions_total"):
            assert f"\nstatepool_{name} " in text
        assert "statepool_time_to_first_token_seconds_count 1.0" in text
        assert "statepool_inter_token_latency_seconds_count 2.0" in text
        assert 'vllm:request_success_total{finished_reason="stop"} 1.0' in text
        assert "vllm:num_requests_running 0.0" in text
        assert 'statepool_engine_generated_tokens_total{engine="0",role="mixed"} ' in text


BAD = [
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"n": 0}, "n"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": "x" * 1_000_000}, "stop"),
    ({"logit_bias": {"one": 1}}, "logit_bias"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"messages": []}, "messages"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice"),
    ({"tools": [TOOL, TOOL]}, "tools"),
    ({"prompt_token_ids": [100_000]}, "prompt_token_ids"),
    ({"messages": [{"role": "user", "content": "x" * 2000}]}, "messages"),
]


@pytest.mark.parametrize(("change", "param"), BAD, ids=[str(change)[:40] for change, _ in BAD])
async def test_a_bad_field_is_named(gateway, change, param):
    client, _ = gateway
    response = await client.post("/v1/chat/completions", json={**chat("x"), **change})
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"].split(".")[0] == param
    assert len(response.content) < 1000


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"messages": NaN}', b'{"messages":[{"role":"user","content":"\\ud800"}]}', b"\xff", b"[]", b'"x"', b""],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/tokenize"])
async def test_a_body_that_is_no_request(gateway, path, body):
    client, _ = gateway
    response = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    answer = response.json()
    assert answer["error"]["message"]
    assert (answer.get("type") == "error") == path.startswith("/v1/messages")


async def test_unknown_things(gateway):
    client, _ = gateway
    missing = await client.post("/v1/chat/completions", json={**chat("x"), "model": "gpt"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert missing.json()["error"]["param"] == "model"
    lost = await client.get("/v2/none")
    assert (lost.status_code, lost.json()["error"]["code"]) == (404, "not_found")
    wrong = await client.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    several = await client.put("/v1/responses/x")
    assert several.headers["allow"] == "DELETE, GET"
    anthropic = await client.get("/v1/messages")
    assert anthropic.json()["type"] == "error"
    gone = await client.post("/v1/responses", json={"input": "x", "previous_response_id": "resp_none"})
    assert (gone.status_code, gone.json()["error"]["param"]) == (404, "previous_response_id")


async def test_a_large_body_is_refused(start_gateway):
    async with start_gateway(max_body_bytes=1000) as (client, _):
        response = await client.post("/v1/chat/completions", json=chat("x" * 2000))
        assert (response.status_code, response.json()["error"]["code"]) == (413, "payload_too_large")

        async def pieces():
            for _ in range(20):
                yield b"x" * 100

        response = await client.post("/v1/messages", content=pieces(), headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["error"]["type"]) == (413, "request_too_large")


async def test_the_key_is_asked_for(start_gateway):
    async with start_gateway(api_key="secret") as (client, _):
        assert (await client.get("/health")).status_code == 200
        refused = await client.get("/v1/models")
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        for headers in ({"Authorization": "Bearer secret"}, {"x-api-key": "secret"}):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
        wrong = await client.get("/v1/models", headers={"Authorization": "Bearer sécret".encode("latin-1")})
        assert wrong.status_code == 401


async def test_a_full_queue_answers_429(start_gateway):
    async with start_gateway(max_in_flight=1) as (client, _):
        response = await client.post("/v1/chat/completions", json=chat("{{x}}", n=2))
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["type"] == "rate_limit_error"


async def test_a_draining_or_dead_server_answers_503(start_gateway):
    async with start_gateway() as (client, state):
        state.draining = True
        for response in (await client.get("/health"), await client.post("/v1/chat/completions", json=chat("x"))):
            assert response.status_code == 503
        state.draining = False
        crashed = await client.post("/v1/chat/completions", json=chat("boom", stream=True))
        assert events(crashed)[-2][1]["error"]["type"] == "service_unavailable_error"
        after = await client.post("/v1/messages", json={**chat("x"), "max_tokens": 1})
        assert (after.status_code, after.json()["error"]["type"]) == (503, "overloaded_error")
        assert (await client.get("/metrics")).status_code == 200
