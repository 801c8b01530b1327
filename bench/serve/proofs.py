"""The cluster's proofs: the tokens of one engine, and what happens to them when something fails."""

from __future__ import annotations

from bench.proofs import Proof

_CLUSTER, _POOL = "tests/e2e/test_cluster.py", "tests/kv/test_pool.py"
PROOFS = (
    Proof(
        "A1",
        "prompts through prefill and decode engines whose tokens differ from those of one engine, of 200",
        "prompts",
        "lower",
        0,
        "sum",
        (f"{_CLUSTER}::test_two_hundred_prompts",),
        "differing",
    ),
    Proof(
        "A12",
        "blocks on two nodes of three, of which one is killed: share served",
        "share",
        "higher",
        1.0,
        "max",
        (f"{_POOL}::test_replicas_outlive_a_node",),
        "served",
    ),
    Proof(
        "A12b",
        "longest first load of a chain on two nodes of three after one was killed",
        "ms",
        "lower",
        100,
        "max",
        (f"{_POOL}::test_replicas_outlive_a_node",),
        "first_ms",
    ),
    Proof(
        "A12c",
        "P99 of loads from then on",
        "ms",
        "lower",
        50,
        "max",
        (f"{_POOL}::test_replicas_outlive_a_node",),
        "p99_ms",
    ),
    Proof(
        "A13",
        "faults in memory, on the wire and on disk that were found before use, of 1000; no other bytes were ever used",
        "faults",
        "higher",
        1000,
        "sum",
        (f"{_POOL}::test_a_thousand_faults",),
        "found",
    ),
    Proof(
        "A14",
        "engines and pool nodes killed or stopped at random under load, 200 times: answers that hung or differ",
        "answers",
        "lower",
        0,
        "sum",
        (f"{_CLUSTER}::test_two_hundred_kills",),
        "wrong",
    ),
    Proof(
        "A14b",
        "from such a blow until the last of six answers under way was whole, longest of 200",
        "s",
        "lower",
        2,
        "max",
        (f"{_CLUSTER}::test_two_hundred_kills",),
        "recovery_s",
    ),
)
