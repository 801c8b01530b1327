"""docs/benchmarks.md, written from the stored results."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"

_STORY = {
    "engine": """\
Every ratio comes from a duel: this project and the peer each in a process of their own, with the same checkpoint
(random weights, written by `bench/checkpoint.py`), the same prompts of random token ids and the same number of
threads. They take turns (ours, peer, ours, peer, …); whoever waits is stopped by a signal, so that no spinning thread
of one side is paid by the other. After one warm turn each, five pairs are timed with fresh prompts; the value is the
median of the five ratios. Speed is counted in tokens per second of the timed part: the prompt up to its first token,
or 32 tokens per sequence after it.

*Share of bound* is what the hardware would allow, measured in the same run: for decode, reading all weights and all
keys and values once per step at the read bandwidth of all cores; for prefill, the multiply-adds at the measured clock
times the lanes of the instruction set in use. A row is *noisy* when other processes used more than a quarter of a core
during it.

The shapes are Qwen3-0.6B (28 layers, hidden 1024, vocabulary 151,936, tied; 1.19 GB in bf16, larger than any cache)
and a small one (8 layers, hidden 512, vocabulary 8,192) for overhead, serving and start-up. int8 rows compare int8
with int8, int4 rows with 4-bit formats. Exception: the served rows compare our default (int8) with the faster of vLLM's
two CPU types (bfloat16 where the processor multiplies it, else float32); E6a is the row of equal precision, E6b shows
the other type. Instruction sets matter: on a processor without AVX-512 nobody has a bf16 dot product, and the same rows
on one that has it will look different.""",
    "attention": """\
Decode rows are duels as in the engine's room, on the kernels alone: one token's query over 128K tokens of bf16 keys and
values, layer after layer, so that over a gigabyte is in turn and no cache holds it; sixteen queries rotate. vLLM's
kernel runs with the instruction set that vLLM picks. *Share of bound* is keys and values over the read bandwidth
that a probe reached in the same run; above 100 % the kernel read faster than the probe. Keys lie around one centre per
sixteen tokens, as trained ones do; how many bytes that leaves to read is printed, because speed cannot grow by more.

A3 asks the probe model about needles and chains in 2,048 tokens (A3a, A3b), and the bundled model about facts in 1,900
tokens of words (A3c, A3d). The text is computed exactly, what follows it sparsely; an answer counts if every token of
it is the likeliest. The others choose with as many bytes as the wave index reads, its tables counted as tokens.""",
    "vector": """\
Every index runs in a process of its own over the same rows and goes through the same widths of its pool, one query per
call, Python's share of a call included; figures of two indexes are compared at equal recall, interpolated between the
widths. `mini` is 50,000 passages as 384 numbers with held-out queries, `head` the same with headings for queries, `syn`
200,000 made-up rows of 128. *Sealed* rows search one-bit codes and measure the best again at stored precision. With
`STATEPOOL_ANN_DATA` unset, `mini` and `head` are left out.""",
    "serve": """\
Rows A2 to A8, A16 and H come from the simulator ([simulate](simulate.md)): requests are those of Mooncake's
published conversation trace (12,031 in an hour; `STATEPOOL_TRACES` names its folder) or drawn, and time passes by
cost models fitted to measured operators of eight A800 with a 70B model. They say what a policy does with the same
machine, and nothing about this one; every side of a row is a policy in the same simulator, so that no figure rests
on two of them. *Effective* is a request with a first token within 30 s and a mean of its longest tenth of gaps
within 0.1 s. `xN` is the trace at N times its recorded speed. Both ways to read its timestamps, which are rounded
to 3 s, are given.

*Ours* places by size and lets decode nodes prefill with what a step may take and its batch leaves. "Prefill nodes
alone" is the same without that: there is little goodput to gain over Algorithm 1 there, because past saturation
they are busy all the time with either; eight of them, all requests known in advance and caches without limit, serve
99.0 % of requests and 91.6 % of tokens at x2.5, or 96.7 % and 79.0 % at x3. The coupled side of H prefills first,
in the batch and without chunks, and does not find prefixes again unless it says so.

A18 is measured: from the keys of a prompt to the decision, in one thread.""",
    "store": """\
Every store runs in a process of its own, called from Python, on a folder of its own on the same disk, with the same
random keys (16 bytes, 100,000 of them) and values (128 bytes, incompressible). They take turns (ours, peer, peer, …,
ours, …); whoever waits is stopped by a signal, its server and threads included. After one warm turn each, nine rounds
are timed; the value is the median of the ratios within a round. Where a claim is about several peers, the fastest of
them counts. The note tells the others.

Before and after every round, the raw floor is measured: 4 KiB written with `O_DIRECT` and `O_DSYNC` over blocks that
are already there, by the same loop. A round around which it moved by more than a factor of two is discarded. *Share of
bound* is our rate over that floor, where one operation needs one such write. If permitted, all sides run with the
real-time policy of `chrt -r 1`, else none (`scheduler` in the results): without it, waits for the disk end at a tick of
the scheduler as soon as both cores are busy. Rows of many threads (M3, M13c, M13d) run under the default policy, on
every side: with real-time slices, a thread that the others wait for keeps its core.

*Durable* means: on return, the write survives a loss of power, for every side (RocksDB `sync`, LMDB as it comes, SQLite
WAL with `synchronous=full`, Redis `appendfsync always`). M4 compares writes that survive the end of the process only.
M12 compares a durable queue with one synced once per second. SmallBank counts only if the sum of all balances is right
afterwards. Redis runs a transaction as WATCH and MGET in one round trip and MULTI to EXEC in a second. The
transactions of TATP and SmallBank are drawn before the clock starts. M7 is the front-end's cache alone on drawn numbers
of pages, where a miss costs a remote read of M6. M11 kills real processes; its seconds hold the start of two of them.
M16 counts what the kernel says a process wrote.

What bounds the rest: a caller that waits for each commit cannot pass the floor (M1). Of the transactions, 16 in 100
write in M13a, which can thus be 6.1 times as fast as the floor at most, and 76 in M13b, 1.3 times. Where many threads
wait, each commit costs at least one sleep and one wake-up of a thread, and Python's interpreter lock once (M3, M13c,
M13d). On the simulated port of M6 no durable write costs less than its record: a stack that is only written to gains
4.9 at most. In the arms with a cache, a page of a hash table is 64 bytes, the best of 64, 128 and 256 there; in those
without, 256 bytes, the better of the two for the naive arm.""",
    "seq": """\
Every value here is certified: a fraction, checked by a program that shares no code with the search. Seconds are
processor seconds of one thread, so a busy machine does not change what a search may do. S3 and S4 stop at the best
value known or at their time. The figures of AlphaSeq (GPU, 4e7 codes) and HpGAN (abstract: four times Legendre's 10.98)
are as published. S6's yardstick is `bench/seq/plain_tabu.cpp`, compiled with `-O3 -march=native`; it is stopped after
20 s, and the ratio is then a lower bound. S10 gives orbits, never single codes: what differs by a symmetry from a
training code is not new.""",
    "sandbox": """\
All sides do the same thing in turn: start, import numpy, run one cell, give its result. *python* is a bare
interpreter, which isolates nothing; *bwrap* is bubblewrap around one. Starts of one side and the other
alternate. CPU time counts the manager, the process that holds the template, and everything in the slot (its
cgroup). Memory is the proportional set size plus page tables, as the growth from ten sandboxes to fifty.""",
    "rollout": """\
Simulated rows use the scheduler that runs live, over engines whose step times are the paper's; lengths are
drawn with the paper's correlations within a group, with all of the paper's engines except where a row says
otherwise. The load of the machine does not move them. Ten seeds of R0 to R4 are 400 iterations, half an hour of
processor time.""",
    "lamina": """\
Nothing is gained on one machine by parting a model from its attention. A19 is exact, A20 counts bytes, A23 is a
closed form checked event by event. A21 and A22 run the real runner, protocol and worker processes over slices
and kernels that sleep as long as the paper's devices take, 300 times slowed down, with a proxy that gives the
link its rate.""",
    "topo": """\
Counts are exact. Speeds are processor seconds of one thread. Every verdict of T5 has a certificate that a
checker in plain Python accepts, which uses none of the libraries that found it. T3's peer is asked on the same
surfaces; what each side does once per curve is in the figure, and curver's time for pairs alone in the note.""",
}


_HEAD = """\
# Benchmarks

Ratios against peers on the machines named below each title. Absolute figures are there to make ratios readable; they
belong to their machine only. Misses are listed as misses. This page is written by `make bench`; do not edit it.

`make bench-setup` installs the peers, each in a virtual environment of its own (versions in `bench/peers/`);
`make bench ARGS=engine` runs a room again, `make bench ARGS='engine --only E1,E4'` single rows of it."""


def write(results: Path) -> None:
    """Write the page from all ``*.json`` in ``results``."""
    parts = [_HEAD] + [room(json.loads(file.read_text())) for file in sorted(results.glob("*.json"))]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n\n".join(parts) + "\n")


def room(content: dict[str, Any]) -> str:
    """One room as markdown."""
    rows = sorted(content["rows"], key=lambda row: _order(row["id"]))
    missed = [row["id"] for row in rows if row["pass"] is False]
    unmeasured = [row["id"] for row in rows if row["pass"] is None]
    parts = [f"## {content['room']}", _machines(content["machines"], rows), _STORY.get(content["room"], "")]
    parts.append(
        f"{sum(row['pass'] is True for row in rows)} of {len(rows)} targets met.{_list(' Missed', missed)}"
        f"{_list(' Not measured', unmeasured)}"
    )
    parts.append(_table(rows))
    notes = [f"- **{row['id']}** {row['note']}" for row in rows if row["note"]]
    if notes:
        parts.append("\n".join(notes))
    versions = sorted({f"{key} {value}" for row in rows for key, value in row["versions"].get("peer", {}).items()})
    if versions:
        parts.append("Peers: " + "; ".join(versions) + ".")
    return "\n\n".join(part for part in parts if part)


def _machines(machines: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """Each machine, with its rows where there are several."""
    lines = []
    for index, about in enumerate(machines):
        its = [row for row in rows if row["machine"] == index]
        dates = sorted({row["at"] for row in its if row["at"]})
        when = f"{dates[0]} to {dates[-1]}" if len(dates) > 1 else "".join(dates)
        lines.append(
            f"Machine{'' if len(machines) == 1 else ' of ' + ', '.join(row['id'] for row in its)}: "
            f"{about['processor']}, {about['cores']} cores, {', '.join(about['instructions'])}, "
            f"{about['memory_gb']} GB; Python {about['python']}. Measured (date, revision): {when}."
        )
    return "\n\n".join(lines)


def _list(title: str, ids: list[str]) -> str:
    return f"{title}: {', '.join(ids)}." if ids else ""


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| id | what | result | target | met | ours | peer | share of bound | load (others) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        value = "–" if row["value"] is None else _number(row["value"], row["unit"])
        sign = "≥" if row["better"] == "higher" else "≤"
        peer = f"{row['peer']}: {row['peer_value']:.4g} {row['peer_unit']}" if row["peer_value"] else row["peer"]
        limit = "" if row["limit"] is None else f"{row['limit']:.0%}"
        load = row["load"]
        busy = f"{load['average_1m']} ({load['others']}{', noisy' if load['noisy'] else ''})" if load else ""
        met = {True: "yes", False: "**no**", None: "–"}[row["pass"]]
        target = f"{sign} {_number(row['target'], row['unit'])}"
        cells = [row["id"], row["what"], value, target, met, row["own"], peer, limit, busy]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float, unit: str) -> str:
    if unit == "x":
        return f"{value:.2f}×"
    text = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return f"{text} {unit}"


def _order(name: str) -> tuple[int, int, str]:
    kinds = "EPDKSA"
    number = "".join(takewhile(str.isdigit, name[1:]))
    return (kinds.index(name[0]) if name[0] in kinds else len(kinds), int(number or 0), name)
