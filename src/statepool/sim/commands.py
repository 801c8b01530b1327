"""``statepool simulate``, ``replay``, ``calibrate``, ``plan``: recorded loads on a cluster, be it there or not."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from statepool.core.command import adder, run
from statepool.core.errors import InvalidConfig
from statepool.serve.costs import NODES, NodeCosts, node_costs
from statepool.serve.policies import ADMISSIONS, PLACEMENTS, conductor
from statepool.serve.snapshot import SLO
from statepool.sim.calibrate import calibrate, read_costs, write_costs
from statepool.sim.cluster import Cluster, Shape
from statepool.sim.offload.commands import add_options, plan
from statepool.sim.plan import Plan, best_split
from statepool.sim.plot import draw
from statepool.sim.replay import play, summary, write_answers
from statepool.sim.report import Report, as_json, report, write_requests
from statepool.sim.traces import BLOCK, Call, jittered, quantum, read_trace, scaled, sped_up

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run ``simulate`` or ``plan``; returns 0, or 2 for what a user can repair."""
    return run("statepool", parser().parse_args(arguments))


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    tree = argparse.ArgumentParser(prog="statepool")
    command = adder(tree)
    _add_simulate(command("simulate", "replay a recorded load on a simulated cluster", _simulate))
    _add_replay(command("replay", "send a recorded load to a running server and measure what its clients see", _replay))
    _add_calibrate(
        command("calibrate", "measure what a running server's engines cost, for simulate --node", _calibrate)
    )
    _add_plan(command("plan", "find which split of nodes bears most of a recorded load", _plan))
    return tree


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    """The options of ``statepool simulate``."""
    parser.add_argument("trace", type=Path, help="Mooncake .jsonl or Azure .csv")
    parser.add_argument("--cluster", default="8P+8D", metavar="nP+mD", help="prefill and decode nodes (default 8P+8D)")
    parser.add_argument("--policy", default="size-aware-inline", help=f"{', '.join(PLACEMENTS)}")
    parser.add_argument("--admission", default="both", help=f"{', '.join(ADMISSIONS)} (default both)")
    parser.add_argument("--against", metavar="ADMISSION", help="note in --out where this admission would differ")
    parser.add_argument("--eviction", default="lru", help="lru (default), lfu, length or likely")
    parser.add_argument(
        "--timestamps", default="both", choices=("raw", "jittered", "both"), help="as recorded, spread, or both in turn"
    )
    parser.add_argument("--speed", type=float, default=1.0, metavar="X", help="replay X times as fast (default 1)")
    parser.add_argument("--requests", type=int, metavar="N", help="only the first N")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="shorten prompts and answers (default 1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSONL with a line per request")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="SVG of latencies and load")
    parser.add_argument("--json", action="store_true", help="print one JSON object per run")
    _add_shared(parser)


def _add_replay(parser: argparse.ArgumentParser) -> None:
    """The options of ``statepool replay``."""
    parser.add_argument("trace", type=Path, help="Mooncake .jsonl or Azure .csv")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default http://127.0.0.1:8000)")
    parser.add_argument("--api-key", help="its key")
    parser.add_argument("--requests", type=int, metavar="N", help="only the first N")
    parser.add_argument("--speed", type=float, default=1.0, metavar="X", help="replay X times as fast (default 1)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="shorten prompts and answers (default 1)")
    parser.add_argument("--slo", default="ttft=30,tbt=0.1", metavar="ttft=S,tbt=S", help="default ttft=30,tbt=0.1")
    parser.add_argument("--block", type=int, default=BLOCK, metavar="N", help=f"tokens per hash_id (default {BLOCK})")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSONL with a line per request")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    """The options of ``statepool calibrate``."""
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default http://127.0.0.1:8000)")
    parser.add_argument("--api-key", help="its key")
    parser.add_argument("--longest", type=int, default=2048, metavar="N", help="tokens of a prompt (default 2048)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON for simulate --node")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    """The options of ``statepool plan``."""
    parser.add_argument("trace", type=Path, help="Mooncake .jsonl or Azure .csv; with --attention also a name, or all")
    parser.add_argument("--nodes", type=int, metavar="N", help="nodes to split into prefill and decode")
    parser.add_argument("--budget", type=float, metavar="DOLLARS", help="per hour, instead of --nodes")
    parser.add_argument("--price", type=float, default=20.0, metavar="DOLLARS", help="a node's per hour (default 20)")
    parser.add_argument("--requests", type=int, metavar="N", help="only the first N")
    parser.add_argument("--share", type=float, default=0.9, help="share of requests and tokens to serve (default 0.9)")
    parser.add_argument("--policy", default="size-aware", help=f"{', '.join(PLACEMENTS)}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_options(parser)
    _add_shared(parser)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slo", default="ttft=30,tbt=0.1", metavar="ttft=S,tbt=S", help="default ttft=30,tbt=0.1")
    parser.add_argument("--node", default="a800", help=f"{', '.join(NODES)} or a FILE of calibrate (default a800)")
    parser.add_argument("--nic-gbps", type=float, metavar="N", help="network of a node (default 800)")
    parser.add_argument("--cache-tokens", type=int, default=3_000_000, metavar="N", help="per node (default 3000000)")
    parser.add_argument("--block", type=int, default=BLOCK, metavar="N", help=f"tokens per hash_id (default {BLOCK})")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default 0")


def _replay(options: argparse.Namespace) -> int:
    """Send the trace to a server and print what its clients saw."""
    slo = _slo(options.slo)
    calls = sped_up(read_trace(options.trace, options.block), options.speed)[: options.requests]
    url, shown = options.url.rstrip("/"), _progress("replay", len(calls))
    answers = play(
        calls, url, block=options.block, scale=options.scale, api_key=options.api_key, passed=shown or (lambda _: None)
    )
    if options.out is not None:
        write_answers(options.out, answers)
    found = summary(answers, slo.ttft_s, slo.tbt_s)
    if options.json:
        print(json.dumps(asdict(found)))
        return 0
    print(
        f"{found.calls} requests: {found.answered:.1%} answered, {found.refused:.1%} refused, {found.failed:.1%} lost\n"
        f"{found.effective:.1%} of requests and {found.effective_tokens:.1%} of tokens kept {options.slo}"
    )
    print(
        f"time to first token p50 {found.ttft_p50_s:.3f} s, p90 {found.ttft_p90_s:.3f} s, p99 {found.ttft_p99_s:.3f} s"
    )
    print(f"between tokens      p50 {found.tbt_p50_s:.3f} s, p90 {found.tbt_p90_s:.3f} s, p99 {found.tbt_p99_s:.3f} s")
    print(f"{found.tokens_s:.0f} tokens/s")
    return 1 if found.failed else 0


def _calibrate(options: argparse.Namespace) -> int:
    """Measure a server and keep what was found."""
    shown: Callable[[int], None] | None = None

    def passed(done: int, total: int) -> None:
        nonlocal shown
        shown = shown or _progress("measure", total) or (lambda _: None)
        shown(done)

    found = calibrate(options.url.rstrip("/"), longest=options.longest, api_key=options.api_key, passed=passed)
    write_costs(options.out, found.costs)
    costs = found.costs
    c0, c1, c2 = costs.prefill
    one, sixteen, read = costs.decode_s(1, 0) * 1e3, costs.decode_s(16, 0) * 1e3, costs.token_read_s * 1e9
    print(
        f"prefill of n tokens  {c0:.4f} s + {c1 * 1e6:.1f} us n + {c2 * 1e9:.2f} ns n^2, to {found.prefill_error:.0%}"
    )
    print(f"decode step          {one:.2f} ms for 1, {sixteen:.2f} ms for 16, {read:.0f} ns per token held", end=", ")
    print(f"to {found.step_error:.0%}")
    print(f"hand-over            {costs.handoff_s(0) * 1e3:.1f} ms, {costs.handoff_s(1000) * 1e3:.1f} for 1,000 tokens")
    print(f"side by side         a prefill takes {costs.prefill_beside:.2f} times as long, ", end="")
    print(f"a decode step {costs.decode_beside:.2f} times")
    return 0


def _simulate(options: argparse.Namespace) -> int:
    """Run the trace and print what came of it."""
    prefill, decode = _cluster(options.cluster)
    costs, slo = _costs(options), _slo(options.slo)
    block = max(1, round(options.block * options.scale))
    shape = Shape(prefill, decode, options.cache_tokens, block, options.eviction)
    steer = conductor(options.policy, options.admission, costs, slo, options.seed)
    shadow = None
    if options.against is not None:
        shadow = conductor(options.policy, options.against, costs, slo, options.seed)
    for name, calls in _timings(options):
        cluster = Cluster(costs, shape, steer, slo, shadow)
        with_bar = _progress(name, len(calls))
        jobs = cluster.run(calls, with_bar)
        figures = report(jobs, cluster.loads, slo, block)
        if options.json:
            print(json.dumps({"timestamps": name, **as_json(figures)}))
        else:
            print(_text(name, figures))
        if shadow is not None:
            print(f"{sum(job.shadow is not None for job in jobs)} decisions differ from {options.against}")
        if options.out is not None:
            write_requests(_named(options.out, name, options.timestamps), jobs)
        if options.plot is not None:
            title = f"{options.trace.name} x{options.speed:g}, {options.cluster}, {options.policy} ({name})"
            _named(options.plot, name, options.timestamps).write_text(draw(jobs, cluster.loads, slo, title))
    return 0


def _plan(options: argparse.Namespace) -> int:
    """Print the split of the nodes that serves the trace fastest, or the devices to take for a model and its KV."""
    if options.attention is not None:
        return plan(options)
    nodes = options.nodes
    if (nodes is None) == (options.budget is None):
        raise InvalidConfig("give either --nodes or --budget", param="nodes")
    if nodes is None:
        if not options.price > 0:
            raise InvalidConfig(f"price is {options.price}; it must be above 0", param="price")
        nodes = int(options.budget / options.price)
    costs, slo = _costs(options), _slo(options.slo)
    calls = _spread(read_trace(options.trace, options.block)[: options.requests], options.seed)
    steer = conductor(options.policy, "both", costs, slo, options.seed)
    found = best_split(calls, nodes, costs, slo, steer, options.share, options.cache_tokens, options.block)
    if options.json:
        print(json.dumps([{"prefill": each.prefill, "decode": each.decode, "speed": each.speed} for each in found]))
    else:
        print("\n".join(_split(each) for each in found))
    return 0


def _split(found: Plan) -> str:
    return f"{found.prefill}P+{found.decode}D  serves the trace at x{found.speed:.2f}"


def _cluster(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)P\+(\d+)D", text)
    if match is None:
        raise InvalidConfig(f"cluster is {text!r}; write it like 8P+8D", param="cluster")
    return int(match[1]), int(match[2])


def _costs(options: argparse.Namespace) -> NodeCosts:
    """Those of a preset, or of a file."""
    if options.node.endswith(".json"):
        if options.nic_gbps is not None:
            raise InvalidConfig(
                "nic_gbps belongs to a preset; a file has the network it was measured with", param="nic_gbps"
            )
        return read_costs(Path(options.node))
    return node_costs(options.node, options.nic_gbps)


def _slo(text: str) -> SLO:
    match = re.fullmatch(r"ttft=([0-9.]+),tbt=([0-9.]+)", text)
    try:
        ttft_s, tbt_s = (float(match[1]), float(match[2])) if match is not None else (0.0, 0.0)
    except ValueError:
        ttft_s, tbt_s = 0.0, 0.0
    if not (ttft_s > 0 and tbt_s > 0):
        raise InvalidConfig(f"slo is {text!r}; write it like ttft=30,tbt=0.1, in seconds", param="slo")
    return SLO(ttft_s, tbt_s)


def _spread(calls: list[Call], seed: int) -> list[Call]:
    return jittered(calls, quantum(calls), seed)


def _timings(options: argparse.Namespace) -> list[tuple[str, list[Call]]]:
    """The trace as recorded and spread over its rounding; the same twice is shown once."""
    raw = scaled(read_trace(options.trace, options.block), options.scale)[: options.requests]
    found = []
    if options.timestamps != "jittered":
        found.append(("raw", sped_up(raw, options.speed)))
    if options.timestamps == "jittered" or (options.timestamps == "both" and quantum(raw) > 0):
        found.append(("jittered", sped_up(_spread(raw, options.seed), options.speed)))
    return found


def _named(path: Path, name: str, timestamps: str) -> Path:
    return path.with_stem(f"{path.stem}-{name}") if timestamps == "both" else path


def _progress(name: str, total: int) -> Callable[[int], None] | None:
    """A bar on a terminal's standard error."""
    if not sys.stderr.isatty():
        return None
    every = max(1, total // 40)

    def passed(done: int) -> None:
        if done % every == 0 or done == total:
            filled = 40 * done // total
            end = "\n" if done == total else ""
            print(f"\r{name:8} [{'#' * filled}{'.' * (40 - filled)}] {done}/{total}", end=end, file=sys.stderr)

    return passed


def _text(name: str, figures: Report) -> str:
    tenths = " ".join(f"{share:.1%}" for share in figures.refused_by_length)
    return (
        f"{name}: {figures.requests} requests\n"
        f"  effective        {figures.effective:.2%} of requests, {figures.effective_tokens:.2%} of prompt tokens\n"
        f"  refused          {figures.refused} on arrival, {figures.wasted} after their prefill\n"
        f"  refused, tenths  {tenths} (by prompt length, shortest first)\n"
        f"  wasted prefill   {figures.wasted_s:.0f} s\n"
        f"  time to first    mean {figures.ttft_mean_s:.2f} s, P50 {figures.ttft_p50_s:.2f}, P90 "
        f"{figures.ttft_p90_s:.2f}, P99 {figures.ttft_p99_s:.2f}\n"
        f"  worst gaps       P50 {figures.tbt_p50_s * 1000:.0f} ms, P90 {figures.tbt_p90_s * 1000:.0f}, P99 "
        f"{figures.tbt_p99_s * 1000:.0f}\n"
        f"  reuse            {figures.reuse_ran:.4f} of the tokens that ran; without limit {figures.reuse_bound:.4f}\n"
        f"  pools            load correlation {figures.load_correlation:+.2f}, decode deviation "
        f"{figures.decode_load_std:.3f}"
    )
