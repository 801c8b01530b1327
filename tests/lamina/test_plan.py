"""The planner: Lamina's figures by hand, a closed form that agrees with events, and a choice that can say no."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool.cli import main
from statepool.sim.offload.choose import choose, layouts
from statepool.sim.offload.costs import (
    DEVICES,
    MODELS,
    WORKLOADS,
    Device,
    Efficiency,
    Layout,
    Shape,
    Workload,
    attention_s,
    estimate,
    model_s,
)
from statepool.sim.offload.events import measure, pipeline

H100, H20 = DEVICES["h100"], DEVICES["h20"]
EQUAL_COST = {"llama-33b": (Layout(2), Layout(1, 2, 2)), "llama-65b": (Layout(4), Layout(2, 4, 2))}
EQUAL_COST["llama3-70b"] = EQUAL_COST["llama-65b"]


def test_bytes_on_the_wire():
    """2405.01814, 3.1: a 70B model needs less than 30 GB/s up to 300 requests where a fifth of the step may be wire."""
    shape = MODELS["llama3-70b"]
    assert shape.wire_bytes(1) == (2 + 2 / 8) * 2 * 8192 * 80
    ideal = Efficiency(flops=1, bandwidth=1)
    for batch in (10, 100, 300):
        step = model_s(shape, H100, 1, batch, ideal) + attention_s(shape, H20, 1, batch * 8192, ideal)
        assert shape.wire_bytes(batch) / (0.2 * step) < 30e9


def test_by_hand():
    """33B on one H100 and two H20, two batches: the model side is the limit and reads all weights for each."""
    found = estimate(MODELS["llama-33b"], WORKLOADS["azure-conv"], Layout(1, 2, 2), H100, H20)
    assert found.batch == pytest.approx(2 * 96e9 * 0.9 / (2 * 60 * 6656 * 2 * (1154.7 + 105.55)))
    assert found.step_s == pytest.approx(2 * 64.7e9 / (3.35e12 * 0.8))
    assert found.dollars == pytest.approx(20.32)
    assert (found.bound, found.partition) == ("model", "heads")


def test_it_declines_where_the_model_is_the_limit():
    """GQA and short contexts: the larger batch only makes the model side wait for its arithmetic."""
    declined = choose(MODELS["llama3-70b"], WORKLOADS["azure-conv"], H100, H20, 44.24)
    assert declined.declined
    assert declined.apart.tokens_s < declined.together.tokens_s
    for work in ("azure-code", "kimi-conv", "kimi-ta"):
        taken = choose(MODELS["llama3-70b"], WORKLOADS[work], H100, H20, 44.24)
        assert taken.best.layout == Layout(2, 4, 2)


def test_the_equal_cost_table(record_property):
    """Lamina's table 5: +16.1 % to +90.1 %, batches 2.39 times as large; one cell cannot be, and is declined."""
    gains, batches = {}, []
    for name, (whole, apart) in EQUAL_COST.items():
        for work in WORKLOADS.values():
            a, b = (estimate(MODELS[name], work, layout, H100, H20) for layout in (whole, apart))
            assert b.dollars < a.dollars
            gains[name, work.name] = b.tokens_s / a.tokens_s - 1
            batches.append(b.batch / a.batch)
    assert gains.pop(("llama3-70b", "azure-conv")) < 0
    assert all(0.161 <= gain <= 0.901 for gain in gains.values())
    assert sum(batches) / len(batches) >= 2.3


def test_heads_that_stay_make_the_declined_cell_pay():
    """Conversations on Llama 3 70B fill the compute devices' memory too: two of eight heads stay, and parting pays."""
    shape, work = MODELS["llama3-70b"], WORKLOADS["azure-conv"]
    whole, partial = (choose(shape, work, H100, H20, 45.0, partial=each) for each in (False, True))
    assert whole.declined and not partial.declined
    assert partial.best.layout.here and partial.best.tokens_s > 1.1 * whole.best.tokens_s
    # By hand: what each side holds, and what a step waits for.
    layout, best = partial.best.layout, partial.best
    stay = layout.here / 8
    each = best.batch / 2 * work.context * shape.kv_token
    assert best.here_s == pytest.approx(stay * each / (layout.compute * 0.8 * H100.bandwidth))
    assert best.attention_s == pytest.approx((1 - stay) * each / (layout.memory * 0.8 * H20.bandwidth))
    held = best.batch * work.context * shape.kv_token
    room = layout.compute * (0.9 * H100.memory - 2e9) - shape.weights
    assert held * stay <= room * 1.000001 and held * (1 - stay) <= layout.memory * 0.9 * H20.memory * 1.000001


@given(st.floats(1, 50), st.floats(1, 50), st.floats(0, 30), st.integers(1, 4))
def test_the_cycle_of_the_pipeline(model, attend, wire, batches):
    """Events against max(n/(n-1) t_m, n t_a, t_m + t_a + net): neither faster nor slower."""
    bound = max(batches / max(batches - 1, 1) * model, batches * attend, model + attend + wire)
    found = pipeline(model, attend, wire, batches, slices=12, steps=40) / 12
    assert found == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("layout", [Layout(4), Layout(2, 4, 1), Layout(2, 4, 2), Layout(2, 4, 3), Layout(3, 2, 2, 2)])
def test_events_agree_with_the_closed_form(layout):
    shape, work = MODELS["llama3-70b"], WORKLOADS["azure-code"]
    closed = estimate(shape, work, layout, H100, H20)
    if closed is None:
        assert measure(shape, work, layout, H100, H20) == 0.0
        return
    events = measure(shape, work, layout, H100, H20, steps=30)
    assert events == pytest.approx(closed.tokens_s, rel=0.1)


@given(
    st.floats(1e9, 300e9),
    st.integers(1, 100),
    st.integers(64, 16384),
    st.sampled_from([1, 2, 4, 8]),
    st.floats(1, 30000),
    st.floats(1, 2000),
    st.floats(1, 100),
)
def test_the_choice_is_the_best_of_all(weights, layers, hidden, group, prompt, output, budget):
    shape = Shape("s", weights, layers, hidden, 8, group)
    work = Workload("w", prompt, output)
    every = [estimate(shape, work, layout, H100, H20) for layout in layouts(H100, H20, budget)]
    fits = [each for each in every if each is not None]
    if fits:
        best = choose(shape, work, H100, H20, budget).best
        assert best.tokens_s == pytest.approx(max(each.tokens_s for each in fits))
        assert best.dollars <= budget + 1e-9


def test_promised_time_between_tokens_limits_the_batch():
    shape, work = MODELS["llama3-70b"], WORKLOADS["azure-code"]
    free = estimate(shape, work, Layout(2, 4, 1), H100, H20)
    tight = estimate(shape, work, Layout(2, 4, 1), H100, H20, slo_tbt=free.step_s * 0.8)
    assert tight.step_s == pytest.approx(free.step_s * 0.8, rel=1e-3)
    assert tight.batch < free.batch
    assert estimate(shape, work, Layout(2, 4, 1), H100, H20, slo_tbt=1e-3) is None


def test_a_larger_memory_never_hurts():
    work, shape = WORKLOADS["kimi-ta"], MODELS["llama-65b"]
    wide = Device("wide", 4.63, 148e12, 200e9, 4e12)
    assert (
        estimate(shape, work, Layout(2, 4, 2), H100, wide).batch
        > estimate(shape, work, Layout(2, 4, 2), H100, H20).batch
    )
    assert Efficiency().memory < 1
    assert math.isclose(H20.price * 4 + H100.price * 2, 40.64)


def test_command(tmp_path, capsys):
    from tests.small_models import write_model

    assert main(["plan", "all", "--attention", "llama3-70b", "--plot", str(tmp_path / "plan.svg")]) == 0
    out = capsys.readouterr().out
    assert "azure-conv   *4 together" in out
    assert "kimi-ta      *DOP(2,4), 2 batches" in out
    assert "stays together" in out
    assert (tmp_path / "plan.svg").read_text().count("<polyline") == 8

    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,1000,50\n")
    model = write_model(tmp_path / "model")
    assert main(["plan", str(trace), "--attention", str(model), "--json", "--budget", "20"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["workload"] == {"name": "trace", "prompt": 1000.0, "output": 50.0}

    for options, word in (
        (["all", "--attention", "gpt-9"], "llama-65b"),
        (["nowhere", "--attention", "llama-65b"], "azure-conv"),
        (["all", "--attention", "llama-65b", "--budget", "1"], "no devices"),
        (["all", "--attention", "llama-65b", "--prices", "h100=x"], "prices"),
        (["all", "--attention", "llama-65b", "--memory", "h200"], "memory must be one of"),
    ):
        assert main(["plan", *options]) == 2
        assert word in capsys.readouterr().err
