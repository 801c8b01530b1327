"""The engine's promises to its callers: limits, errors, usage, stops, no leaks, counted work."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statepool.core.errors import ContextLengthExceeded, Corruption, InvalidConfig, InvalidRequest, NotFound, Overloaded
from statepool.engine.request import Request, SamplingParams

GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


def run(engine, request):
    return engine.generate([request])[request.id]


def text(outputs):
    return "".join(o.text for o in outputs)


def test_counts_are_of_ids_and_exact(make_engine):
    engine = make_engine()
    outputs = run(engine, Request("a", tuple(range(50)), GREEDY))
    usage = outputs[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (50, 8, 0)
    assert sum(len(o.tokens) for o in outputs) == 8
    assert len(outputs) == 8  # one output a step: it streams
    usage = run(engine, Request("b", tuple(range(50)), GREEDY))[-1].usage
    assert usage.cached_tokens == 48
    stats = engine.stats()
    # Work is counted in tokens fed to the model: prompt misses + one per generated token but the last.
    assert stats.forward_tokens == 50 + 7 + 2 + 7
    assert stats.prefix_hit_tokens == 48
    assert stats.generated_tokens == 16


def test_a_prompt_found_whole_computes_one_token(make_engine):
    engine = make_engine()
    prompt = tuple(range(32))
    first = run(engine, Request("a", prompt, GREEDY))
    before = engine.stats().forward_tokens
    again = run(engine, Request("b", prompt, SamplingParams(max_tokens=1, temperature=0.0)))
    assert again[-1].usage.cached_tokens == 31
    assert engine.stats().forward_tokens == before + 1
    assert again[0].tokens == first[0].tokens


def test_siblings_compute_their_prompt_once(make_engine):
    engine = make_engine(max_batched_tokens=64)
    prompt = tuple(range(64))
    engine.generate([Request(f"r{i}", prompt, SamplingParams(max_tokens=2, seed=i), index=i) for i in range(8)])
    assert engine.stats().forward_tokens <= 64 + 7 + 8


def test_tenants_do_not_share_blocks(make_engine):
    engine = make_engine()
    prompt = tuple(range(64))
    run(engine, Request("a", prompt, GREEDY, salt="alice"))
    assert run(engine, Request("b", prompt, GREEDY, salt="bob"))[-1].usage.cached_tokens == 0
    assert run(engine, Request("c", prompt, GREEDY, salt="alice"))[-1].usage.cached_tokens == 63


def test_stop_string_across_tokens_cuts_the_text(make_engine):
    engine = make_engine()
    whole = text(
        run(engine, Request("a", tuple(range(50)), SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)))
    )
    stop = whole[6:9]
    outputs = run(
        engine,
        Request("b", tuple(range(50)), SamplingParams(max_tokens=30, temperature=0.0, stop=(stop,), ignore_eos=True)),
    )
    assert text(outputs) == whole[: whole.index(stop)]
    assert outputs[-1].finish_reason == "stop"
    assert outputs[-1].stop_reason == stop


def test_eos_and_stop_tokens(make_engine):
    engine = make_engine()
    bias = {257: 100.0}
    outputs = run(engine, Request("a", (1, 2), SamplingParams(max_tokens=9, temperature=0.0, logit_bias=bias)))
    assert [o.tokens for o in outputs] == [(257,)]
    assert (outputs[-1].finish_reason, text(outputs), outputs[-1].stop_reason) == ("stop", "", None)
    outputs = run(
        engine, Request("b", (1, 2), SamplingParams(max_tokens=9, temperature=0.0, logit_bias=bias, min_tokens=4))
    )
    assert outputs[-1].usage.completion_tokens == 5
    outputs = run(
        engine,
        Request("c", (1,), SamplingParams(max_tokens=9, temperature=0.0, logit_bias={65: 100.0}, stop_token_ids=(65,))),
    )
    assert outputs[-1].stop_reason == 65
    outputs = run(
        engine, Request("d", (1, 2), SamplingParams(max_tokens=9, temperature=0.0, logit_bias=bias, ignore_eos=True))
    )
    assert (outputs[-1].finish_reason, outputs[-1].usage.completion_tokens) == ("length", 9)


def test_padding_ids_of_the_head_are_never_chosen(make_engine):
    engine = make_engine()  # the head has 320 rows, the tokenizer 258 ids
    outputs = engine.generate(
        [Request(f"r{i}", (i,), SamplingParams(max_tokens=20, temperature=5.0, seed=i)) for i in range(8)]
    )
    assert max(t for os in outputs.values() for o in os for t in o.tokens) < 258


@pytest.mark.parametrize(
    ("changes", "error", "field"),
    [
        ({"prompt": ()}, InvalidRequest, "prompt"),
        ({"prompt": (320,)}, InvalidRequest, "prompt"),
        ({"prompt": (-1,)}, InvalidRequest, "prompt"),
        ({"prompt": tuple([1] * 512)}, ContextLengthExceeded, "prompt"),
        ({"params": SamplingParams(logit_bias={400: 1.0})}, InvalidRequest, "logit_bias"),
    ],
)
def test_bad_requests_name_their_field_and_change_nothing(changes, error, field, make_engine):
    engine = make_engine()
    with pytest.raises(error) as caught:
        engine.submit(Request(**{"id": "a", "prompt": (1,), **changes}))
    assert caught.value.param == field
    assert not engine.has_work
    assert run(engine, Request("a", (1, 2, 3), GREEDY))


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", float("nan")), ("temperature", -1), ("top_p", 0.0), ("logprobs", 21), ("stop", ("",)),
     ("stop", ("x" * 1_000_000,)), ("max_tokens", -1), ("seed", 1 << 70), ("min_p", True), ("logit_bias", {1: 101.0})],
)  # fmt: skip
def test_bad_sampling_params_name_their_field(field, value):
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field


def test_context_end_is_a_length_stop(make_engine):
    outputs = run(make_engine(), Request("a", tuple([7] * 500), SamplingParams(max_tokens=100, ignore_eos=True)))
    assert (outputs[-1].finish_reason, outputs[-1].usage.completion_tokens) == ("length", 12)


def test_max_tokens_zero_scores_the_prompt(make_engine):
    outputs = run(make_engine(), Request("a", tuple(range(30)), SamplingParams(max_tokens=0, prompt_logprobs=2)))
    assert len(outputs) == 1
    entries = outputs[0].prompt_logprobs
    assert entries[0] is None
    assert [e.token for e in entries[1:]] == list(range(1, 30))
    assert all(len(e.top) == 2 and e.top[0][1] >= e.logprob for e in entries[1:])


def test_queue_has_an_end(make_engine):
    engine = make_engine(max_waiting=2)
    for i in range(2):
        engine.submit(Request(f"r{i}", (1,), GREEDY))
    with pytest.raises(Overloaded):
        engine.submit(Request("r2", (1,), GREEDY))


def test_abort_frees_everything_before_the_next_step(make_engine):
    engine = make_engine()
    engine.submit(Request("a", tuple(range(60)), SamplingParams(max_tokens=400, ignore_eos=True)))
    for _ in range(3):
        engine.step()
    assert engine.pool.free < engine.pool.total
    assert engine.abort("a")
    assert not engine.abort("a")
    assert engine.pool.free == engine.pool.total
    assert not engine.has_work


def test_pause_keeps_requests_and_resume_continues(make_engine):
    engine = make_engine()
    expected = run(make_engine(), Request("a", (1, 2, 3), GREEDY))
    engine.submit(Request("a", (1, 2, 3), GREEDY))
    outputs = engine.step()
    engine.pause()
    assert engine.step() == []
    engine.resume()
    while engine.has_work:
        outputs += engine.step()
    assert [o.tokens for o in outputs] == [o.tokens for o in expected]


def test_settings_that_cannot_be_kept_are_refused(make_engine):
    with pytest.raises(InvalidConfig, match="max_model_len"):
        make_engine(max_model_len=513)
    with pytest.raises(InvalidConfig, match="kv_bytes"):
        make_engine(kv_bytes=100)
    with pytest.raises(InvalidConfig, match="quant"):
        make_engine(quant="int3")


def test_a_small_pool_limits_the_context_and_says_so(make_engine, caplog):
    engine = make_engine(blocks=4)
    assert engine.info.max_model_len == 64
    assert "max_model_len" in caplog.text


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_block_leaks_whatever_is_submitted_and_aborted(data, make_engine):
    engine = make_engine(blocks=data.draw(st.integers(5, 30)), max_seqs=4, max_batched_tokens=24, speculate="ngram")
    alive = 0
    for i in range(data.draw(st.integers(1, 25))):
        match data.draw(st.sampled_from(["submit", "step", "step", "abort"])):
            case "submit":
                length = data.draw(st.integers(1, engine.info.max_model_len - 1))
                session = data.draw(st.sampled_from([None, None, "s", "t"]))
                params = SamplingParams(max_tokens=data.draw(st.integers(0, 20)), seed=i)
                engine.submit(Request(f"r{i}", tuple([i % 3] * length), params, session=session))
                alive += 1
            case "step":
                alive -= sum(o.finish_reason is not None for o in engine.step())
            case "abort":
                alive -= engine.abort(f"r{data.draw(st.integers(0, 24))}")
        engine.pool.check()
    steps = 0
    while engine.has_work:
        alive -= sum(o.finish_reason is not None for o in engine.step())
        engine.pool.check()
        steps += 1
        assert steps < 2000, "the engine does not come to an end"
    assert alive == 0
    for name in engine.sessions.names(""):
        engine.sessions.drop("", name)
    assert engine.pool.free == engine.pool.total


def test_session_resumes_without_recomputing(make_engine):
    engine = make_engine()
    prompt = tuple(range(37))
    first = run(engine, Request("a", prompt, GREEDY, session="s"))
    said = prompt + tuple(t for o in first for t in o.tokens)
    for parked in (False, True):
        if parked:
            engine.sessions.park("", "s")
            engine.reset_prefix_cache()
        engine.sessions.fork("", "s", "t")
        before = engine.stats().forward_tokens
        outputs = run(engine, Request("b", (*said, 5, 6), GREEDY, session="t"))
        # 44 tokens were kept; the last generated one had not been computed yet.
        assert outputs[-1].usage.cached_tokens == 44
        assert engine.stats().forward_tokens - before == 3 + 7
    with pytest.raises(NotFound):
        engine.sessions.drop("", "nobody")
    with pytest.raises(NotFound):
        engine.sessions.drop("other tenant", "s")


def test_idle_sessions_make_room_before_anybody_is_preempted(make_engine):
    engine = make_engine(blocks=8)
    run(engine, Request("a", tuple(range(90)), GREEDY, session="s"))
    run(engine, Request("b", tuple(range(100, 190)), GREEDY))
    assert engine.stats().preemptions == 0
    assert engine.stats().session_bytes_parked > 0
    outputs = run(engine, Request("c", tuple(range(97)), GREEDY, session="s"))
    assert outputs[-1].usage.cached_tokens >= 90


def test_moved_state_is_checked(make_engine, make_checkpoint):
    engine = make_engine()
    engine.submit(Request("a", (1, 2, 3), GREEDY))
    engine.step()
    state = engine.export_state("a")
    assert not engine.has_work
    with pytest.raises(Corruption):
        engine.import_state(state[:-20] + b"x" + state[-19:])
    with pytest.raises(InvalidRequest, match="belongs to"):
        make_engine(model=make_checkpoint(seed=1)).import_state(state)
    with pytest.raises(NotFound):
        engine.export_state("a")


def test_new_weights_answer_as_a_fresh_engine_with_them(make_engine, make_checkpoint):
    engine = make_engine()
    other = make_engine(model=make_checkpoint(seed=1))
    prompt = tuple(range(40))
    run(engine, Request("warm", prompt, GREEDY))
    source = other._checkpoint
    engine.update_weights([(name, np.array(source.tensor(name))) for name in source.names], "1")
    outputs = run(engine, Request("a", prompt, GREEDY))
    assert outputs[-1].usage.cached_tokens == 0
    assert [o.tokens for o in outputs] == [o.tokens for o in run(other, Request("a", prompt, GREEDY))]
    assert engine.stats().weight_version == "1"
