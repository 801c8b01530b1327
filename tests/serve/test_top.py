"""What ``statepool top`` shows fits the terminal it is read in."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from statepool.serve.top import picture

ADDRESS = "unix:/tmp/statepool-6zf6lajv/pool0"


def test_eighty_columns_hold_every_word_and_figure_of_a_busy_cluster() -> None:
    engine = {
        "role": "prefill",
        "pid": 1234567,
        "usable": False,
        "running": 128,
        "waiting": 256,
        "queued_tokens": 1_310_721,
        "held_tokens": 1_048_577,
        "kv_blocks_total": 65536,
        "kv_blocks_free": 0,
        "prefix_query_tokens": 10,
        "prefix_hit_tokens": 10,
        "generated_tokens": 1_000_003,
    }
    node = {"address": ADDRESS, "answers": True, "blocks": 65535, "slots": 65536, "slot_bytes": 1 << 20}
    node |= {"on_disk": 1_000_001, "hits": 1, "misses": 0, "evicted": 1_000_002}
    now = {"engines": [engine | {"number": n} for n in range(12)], "nodes": [node]}
    before = {"engines": [engine | {"number": n, "generated_tokens": 0} for n in range(12)]}
    out = StringIO()
    Console(file=out, width=80, force_terminal=False).print(picture(now, before, 1.0))
    shown = out.getvalue()
    assert "\u2026" not in shown, "something is cut"
    words = ["engine", "role", "pid", "run", "wait", "queued", "held", "KV", "hits", "tok/s", "node", "evicted"]
    figures = ["11 (away)", "1234567", "128", "256", "1310721", "1048577", "100%", "1000003", "65535", "1000002"]
    assert [each for each in (*words, *figures, ADDRESS) if each not in shown] == []
