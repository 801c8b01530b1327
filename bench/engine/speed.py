"""E1 to E7: the step loop of the engine against three peers, each claim in one duel."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.bounds import Bounds
from bench.checkpoint import CACHE, SHAPES, checkpoint
from bench.duel import Worker, WorkerError, duel
from bench.machine import LoadWatch
from bench.peers.setup import python_of
from bench.row import Row

_SCRIPTS = {"openvino": "ov.py", "llamacpp": "llama.py", "vllm": "vllm_cpu.py"}
_LABELS = {
    ("openvino", "int8"): "OpenVINO GenAI int8",
    ("llamacpp", "q4_0"): "llama.cpp Q4_0",
    ("llamacpp", "q8_0"): "llama.cpp Q8_0",
    ("vllm", "bf16"): "vLLM CPU bf16",
    ("vllm", "fp32"): "vLLM CPU fp32",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One claim about speed."""

    id: str
    what: str
    target: float
    kind: str
    batch: int
    context: int
    tokens: int = 32
    pairs: int = 5


@dataclass(frozen=True, slots=True)
class Match:
    """Two loaded engines and the cases they are compared in."""

    shape: str
    ours: str
    peer: str
    theirs: str
    cases: tuple[Case, ...]


MATCHES = (
    Match(
        "qwen3-0.6b",
        "int8",
        "openvino",
        "int8",
        (
            Case("E1", "decode, batch 1, int8", 1.3, "decode", 1, 512),
            Case("E2", "decode, batch 8, int8", 1.4, "decode", 8, 64),
            Case("E4a", "prefill, 1 × 512, int8", 1.1, "prefill", 1, 512, 1),
            Case("E4b", "prefill, 8 × 64, int8", 1.1, "prefill", 8, 64, 1),
            Case("E5", "decode, batch 1 at 3840 context, int8", 1.8, "decode", 1, 3840, pairs=3),
        ),
    ),
    Match(
        "qwen3-0.6b",
        "int4",
        "llamacpp",
        "q4_0",
        (Case("E3", "decode, batch 1, int4 g64", 1.7, "decode", 1, 512),),
    ),
    Match(
        "qwen3-0.6b",
        "bf16",
        "vllm",
        "bf16",
        (Case("E6a", "decode, batch 8, bf16", 1.25, "decode", 8, 64, pairs=3),),
    ),
    # Without bf16 instructions vLLM is faster on widened weights: the row above alone would flatter us.
    Match(
        "qwen3-0.6b",
        "bf16",
        "vllm",
        "fp32",
        (Case("E6b", "decode, batch 8, bf16 against vLLM's other type", 1.25, "decode", 8, 64),),
    ),
    Match(
        "small",
        "int8",
        "llamacpp",
        "q8_0",
        (
            Case("E7a", "small model, decode, batch 1, int8", 1.0, "decode", 1, 512),
            Case("E7b", "small model, decode, batch 8, int8", 1.5, "decode", 8, 64),
        ),
    ),
)


def run(only: Sequence[str], quick: bool, bounds: Bounds) -> Iterator[Row]:
    """Play every match that has a wanted case. A side that cannot run leaves its reason in the row."""
    for match in MATCHES:
        cases = [case for case in match.cases if not only or case.id in only or case.id[:2] in only]
        if cases:
            yield from _play(match, cases, quick, bounds)


def _play(match: Match, cases: Sequence[Case], quick: bool, bounds: Bounds) -> Iterator[Row]:
    label = _LABELS[match.peer, match.theirs]
    rows = [_row(case, label) for case in cases]
    with ExitStack() as stack:
        try:
            ours = stack.enter_context(_worker("ours", Path(sys.executable), "ours.py", bounds.threads))
            _load(ours, match, match.ours, bounds.threads)
        except WorkerError as error:
            for row in rows:
                row.note = str(error)
            yield from rows
            return
        peer, reason = _peer(stack, match, bounds.threads)
        for case, row in zip(cases, rows, strict=True):
            row.note = reason
            row.versions = {"ours": ours.loaded, "peer": peer.loaded if peer else {}}
            try:
                _measure(case, row, match, ours, peer, quick, bounds)
            except WorkerError as error:
                row.note = str(error)
            yield row


def _row(case: Case, label: str) -> Row:
    return Row(
        id=case.id,
        what=case.what,
        unit="x",
        better="higher",
        target=case.target,
        peer=label,
        peer_unit="tok/s",
        command=f"python -m bench engine --only {case.id}",
    )


def _worker(name: str, python: Path, script: str, threads: int) -> Worker:
    logs = CACHE / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return Worker(name, python, script, logs / f"{name}.log", threads)


def _load(worker: Worker, match: Match, quant: str, threads: int) -> None:
    longest = max(case.context + case.tokens for case in match.cases)
    worker.load(checkpoint=str(checkpoint(match.shape)), quant=quant, threads=threads, length=longest + 64)


def _peer(stack: ExitStack, match: Match, threads: int) -> tuple[Worker | None, str]:
    """The loaded peer, or the reason why there is none."""
    python = python_of(match.peer)
    if python is None:
        return None, f"{match.peer} is not installed (make bench-setup): no ratio"
    try:
        peer = stack.enter_context(_worker(match.peer, python, _SCRIPTS[match.peer], threads))
        _load(peer, match, match.theirs, threads)
    except WorkerError as error:
        return None, str(error)
    return peer, ""


def _measure(
    case: Case, row: Row, match: Match, ours: Worker, peer: Worker | None, quick: bool, bounds: Bounds
) -> None:
    tokens = 8 if quick and case.kind == "decode" else case.tokens
    spec = {"kind": case.kind, "batch": case.batch, "context": case.context, "tokens": tokens}
    watch = LoadWatch()
    # Each case has prompts of its own: no engine may find one case's KV in its cache in another.
    result = duel(ours, peer, spec, pairs=2 if quick else case.pairs, seed=zlib.crc32(case.id.encode()))
    row.load = watch.stop()
    row.value, row.peer_value = result.ratio, result.theirs
    row.own = f"{result.ours:.4g} tok/s"
    shape = SHAPES[match.shape]
    if match.shape == "small":
        return  # its weights stay in the last-level cache: memory bandwidth bounds nothing
    if case.kind == "decode":
        least = bounds.decode_seconds(shape, match.ours, case.batch, case.context + tokens // 2)
        row.limit = least / (case.batch / result.ours)
    else:
        isa = str(ours.loaded.get("isa", "generic"))
        least = bounds.prefill_seconds(shape, match.ours, case.batch, case.context, isa)
        row.limit = least / (case.batch * case.context / result.ours)
    row.versions["spread"] = round(result.spread, 3)
