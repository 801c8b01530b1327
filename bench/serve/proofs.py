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
)
