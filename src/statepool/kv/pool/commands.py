"""``statepool pool``: a node of the shared KV pool, and what nodes hold."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from statepool.core.command import adder, run, serve
from statepool.core.config import parse_size
from statepool.core.errors import Unavailable
from statepool.kv.pool.link import NodeLink
from statepool.kv.pool.node import Node, NodeConfig

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    tree = argparse.ArgumentParser(prog="statepool pool", description="The shared pool of KV blocks.")
    command = adder(tree)
    lend = command("serve", "lend memory and disk of this machine to engines", _serve)
    lend.add_argument(
        "--listen", required=True, metavar="ADDRESS", help="unix:/path or tcp://host:port (0: a free one)"
    )
    lend.add_argument(
        "--block-bytes",
        required=True,
        metavar="SIZE",
        help="16 tokens x layers x 2 x KV heads x head size x 2 bytes (4 with --quant fp32)",
    )
    lend.add_argument("--memory-bytes", default="1GiB", metavar="SIZE", help="memory to lend (default 1GiB)")
    lend.add_argument("--disk-path", type=Path, metavar="FILE", help="file for blocks on disk (default: none)")
    lend.add_argument("--disk-bytes", default="4GiB", metavar="SIZE", help="most bytes of that file (default 4GiB)")
    lend.add_argument(
        "--lease-s", type=float, default=10.0, metavar="S", help="an engine silent for so long loses its leases"
    )
    lend.add_argument("--eviction", default="lru", help="which block goes first (default lru)")
    lend.add_argument("--name", default="", help="name of the node (default: its address)")
    lend.add_argument(
        "--transfer",
        default="",
        metavar="tcp|rdma",
        help="move blocks by Mooncake's transfer engine (default: sockets)",
    )
    lend.add_argument("--with-parent", action="store_true", help="end when the process that started it ends")
    stats = command("stats", "what nodes hold", _stats)
    stats.add_argument("address", nargs="+", help="address of a node")
    stats.add_argument("--json", action="store_true", help="print one JSON object a node")
    return run("statepool pool", tree.parse_args(arguments))


def _serve(options: argparse.Namespace) -> int:
    node = Node(
        NodeConfig(
            listen=options.listen,
            block_bytes=parse_size(options.block_bytes),
            memory_bytes=parse_size(options.memory_bytes),
            disk_path=options.disk_path,
            disk_bytes=parse_size(options.disk_bytes),
            lease_s=options.lease_s,
            eviction=options.eviction,
            name=options.name,
            transfer=options.transfer,
        )
    )

    def announcement() -> str:
        return f"pool node at {node.address}: {node.stats().slots} blocks of {options.block_bytes} bytes"

    return serve(node, announcement, options.with_parent)


def _stats(options: argparse.Namespace) -> int:
    for address in options.address:
        try:
            with contextlib.closing(NodeLink(address)) as link:
                found = link.stats()
        except OSError as error:
            raise Unavailable(f"no pool node answers at {address}: {error.strerror or error}") from None
        if options.json:
            print(json.dumps({"address": address, **{name: getattr(found, name) for name in found.__struct_fields__}}))
            continue
        used = found.blocks / found.slots
        print(
            f"{address}: {found.blocks} of {found.slots} blocks ({used:.0%}) of {found.slot_bytes} bytes, "
            f"{found.held} in use, {found.on_disk} on disk; {found.hits} hits, {found.misses} misses, "
            f"{found.evicted} evicted, {found.expired} leases expired, {found.dropped + found.disk_bad} bad blocks"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
