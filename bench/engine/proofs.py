"""The engine's proofs: parity, determinism, leaks, grammars, speculation, clients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench import proofs
from bench.proofs import Proof
from bench.row import Row

_ENGINE = "tests/engine"
PROOFS = (
    Proof(
        "P1",
        "fp32 logits against transformers: largest relative L2 of any position, models drawn",
        "rel. L2",
        "lower",
        1e-5,
        "max",
        (f"{_ENGINE}/test_parity_hf.py",),
        "rel_l2",
    ),
    Proof(
        "D1",
        "bit-equal results alone, batched, chunked, cached, preempted, drafted, moved: drawn cases",
        "cases",
        "higher",
        200,
        "passed",
        (f"{_ENGINE}/test_determinism.py::test_same_bits_whatever_happens",),
    ),
    Proof(
        "D2",
        "score() equals the log-probabilities of generation, every bit: drawn cases",
        "cases",
        "higher",
        200,
        "sum",
        (f"{_ENGINE}/test_score.py",),
        "cases",
    ),
    Proof(
        "K1",
        "prefix hits equal an independent simulator, no block leaks",
        "failures",
        "lower",
        0,
        "failed",
        (
            f"{_ENGINE}/test_prefix_cache.py",
            f"{_ENGINE}/test_engine.py::test_no_block_leaks_whatever_is_submitted_and_aborted",
        ),
    ),
    Proof(
        "S1",
        "drawn JSON schemas, four budgets each from the shortest possible: closed, parsed, valid",
        "schemas",
        "higher",
        500,
        "sum",
        (f"{_ENGINE}/text/test_grammar_closing.py::test_five_hundred_schemas_close",),
        "schemas",
    ),
    Proof(
        "S2",
        "speculation changes no token; sampled tokens follow the model (chi-square)",
        "failures",
        "lower",
        0,
        "failed",
        (f"{_ENGINE}/test_speculate.py",),
    ),
    Proof(
        "A1",
        "openai and anthropic clients unmodified; schemathesis over the whole schema",
        "failures",
        "lower",
        0,
        "failed",
        ("tests/e2e/test_server.py", "tests/e2e/test_contract.py"),
    ),
    Proof(
        "A2a",
        "64 streaming clients, half leave at random: nothing is left behind",
        "failures",
        "lower",
        0,
        "failed",
        (
            "tests/e2e/test_server.py::test_64_streams_of_which_half_disconnect",
            "tests/e2e/test_server.py::test_crowds_for_a_while_leave_nothing_behind",
        ),
    ),
)


def run(only: Sequence[str]) -> Iterator[Row]:
    """Run the wanted proofs."""
    yield from proofs.run(PROOFS, only)
