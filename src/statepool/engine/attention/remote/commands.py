"""``statepool attention``: a worker that holds KV blocks and runs the attention over them."""

from __future__ import annotations

import argparse
import json
import sys

from statepool.core.command import adder, run, serve
from statepool.core.errors import Corruption, InvalidConfig, Unavailable
from statepool.engine.attention.remote.link import figures
from statepool.engine.attention.remote.node import AttentionNode
from statepool.native import kernels

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    tree = argparse.ArgumentParser(prog="statepool attention", description="Attention workers.")
    command = adder(tree)
    lend = command("serve", "lend memory and its bandwidth to a model that runs elsewhere", _serve)
    lend.add_argument(
        "--listen", required=True, metavar="ADDRESS", help="unix:/path or tcp://host:port (0: a free one)"
    )
    lend.add_argument("--threads", type=int, metavar="N", help="threads of the kernels (default: all cores)")
    lend.add_argument("--with-parent", action="store_true", help="end when the process that started it ends")
    stats = command("stats", "what workers hold and have done", _stats)
    stats.add_argument("address", nargs="+", help="address of a worker")
    stats.add_argument("--json", action="store_true", help="print one JSON object a worker")
    bench = command("bench", "what a token costs here: exact, by the wave index, by blocks", _bench)
    bench.add_argument("--tokens", type=int, default=32768, metavar="N", help="of the context (default 32768)")
    bench.add_argument("--dim", type=int, default=128, metavar="N", help="of a head (default 128)")
    bench.add_argument("--heads", type=int, default=16, metavar="N", help="default 16")
    bench.add_argument("--kv-heads", type=int, default=8, metavar="N", help="default 8")
    bench.add_argument("--layers", type=int, default=4, metavar="N", help="in turn (default 4)")
    bench.add_argument("--threads", type=int, metavar="N", help="threads of the kernels (default: all cores)")
    bench.add_argument("--json", action="store_true", help="print one JSON object a kind")
    return run("statepool attention", tree.parse_args(arguments))


def _use(threads: int | None) -> None:
    if threads is not None and kernels is not None:
        try:
            kernels.set_threads(threads)
        except ValueError as error:
            raise InvalidConfig(str(error), param="threads") from None


def _bench(options: argparse.Namespace) -> int:
    from statepool.engine.attention.measure import Layers
    from statepool.engine.attention.wave import WaveConfig

    _use(options.threads)
    made = Layers(options.tokens, options.dim, options.heads, options.kv_heads, options.layers, WaveConfig())
    costs = made.costs()
    if not options.json:
        print(f"building the wave index: {made.build_seconds:.3g} s a layer")
    for cost in costs:
        if options.json:
            print(json.dumps({"kind": cost.name, "milliseconds": cost.milliseconds, "byte_ratio": cost.byte_ratio}))
        else:
            faster = costs[0].milliseconds / cost.milliseconds
            print(
                f"{cost.name:6} {cost.milliseconds:8.3f} ms a layer, {faster:5.2f} times as fast, "
                f"{cost.byte_ratio:5.1f} times fewer bytes"
            )
    return 0


def _serve(options: argparse.Namespace) -> int:
    node = AttentionNode(options.listen)
    _use(options.threads)
    return serve(node, lambda: f"attention worker at {node.reachable}", options.with_parent)


def _stats(options: argparse.Namespace) -> int:
    for address in options.address:
        try:
            found = figures(address)
        except (OSError, Corruption) as error:
            raise Unavailable(f"no attention worker answers at {address}: {error}") from None
        if options.json:
            print(json.dumps({"address": address, **{name: getattr(found, name) for name in found.__struct_fields__}}))
            continue
        print(
            f"{address}: {found.blocks} blocks, {found.found} of them full and known by key; {found.answers} layers "
            f"attended; {found.in_gaps} pieces of blocks taken in between steps, {found.in_steps} within"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
