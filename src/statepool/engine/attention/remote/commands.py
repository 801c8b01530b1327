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
    return run("statepool attention", tree.parse_args(arguments))


def _serve(options: argparse.Namespace) -> int:
    node = AttentionNode(options.listen)
    if options.threads is not None and kernels is not None:
        try:
            kernels.set_threads(options.threads)
        except ValueError as error:
            raise InvalidConfig(str(error), param="threads") from None
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
