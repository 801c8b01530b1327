"""``statepool store serve``, ``mirror``, ``promote`` and ``witness``."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

__all__ = ["add"]


def add(command: Any) -> None:
    """Make the commands; ``command(name, text, run)`` gives the parser of one."""
    serve = command("serve", "serve a store to other processes and machines", _serve)
    serve.add_argument("path", type=Path, help="the store's folder; made if there is none")
    _add_listen(serve)
    serve.add_argument("--capacity", default="1GiB", help="bytes of heap of a new store (default 1GiB)")
    _add_witness(serve, "acknowledge only while this witness renews the lease")
    mirror = command("mirror", "keep a copy of a served store that can take over", _mirror)
    mirror.add_argument("path", type=Path, help="the copy's folder")
    mirror.add_argument("--of", required=True, metavar="URL", help="the primary's address")
    promote = command("promote", "make a mirror's folder a primary's, to be served from now on", _promote)
    promote.add_argument("path", type=Path, help="the mirror's folder; its process has ended")
    promote.add_argument("--of", metavar="URL", help="the old primary, to tell it if it can be reached")
    group = promote.add_mutually_exclusive_group(required=True)
    group.add_argument("--witness", metavar="URL", help="asked until the old primary's lease has ended")
    group.add_argument("--force", action="store_true", help="no witness: I know that the old primary is gone")
    promote.add_argument("--wait", type=float, default=30.0, help="seconds to wait for the witness (default 30)")
    witness = command("witness", "the third voter, without which no mirror takes over by itself", _witness)
    witness.add_argument("path", type=Path, help="folder for its vote")
    _add_listen(witness)
    witness.add_argument("--lease", type=float, default=3.0, help="seconds; the same for all (default 3)")


def _add_listen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen", required=True, metavar="URL", help="unix:///path or tcp://host:port; whoever reaches it may do all"
    )


def _add_witness(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--witness", metavar="URL", help=text)
    parser.add_argument("--lease", type=float, default=3.0, help="seconds; as the witness has it (default 3)")


def _serve(options: argparse.Namespace) -> int:
    from statepool.store.net.serving import Serving

    primary = Serving(
        options.path, options.listen, witness=options.witness, lease=options.lease, capacity=options.capacity
    )
    return _run(primary.start(), f"serving {options.path} at {options.listen}", primary.stop)


def _mirror(options: argparse.Namespace) -> int:
    from statepool.store.net.mirror import Following

    following = Following(options.path, options.of)
    return _run(following.start(), f"mirroring {options.of} in {options.path}", following.stop, following.wait)


def _promote(options: argparse.Namespace) -> int:
    from statepool.store.net.mirror import promote

    term = asyncio.run(promote(options.path, witness=options.witness, old=options.of, wait=options.wait))
    print(f"term {term}: {options.path} is a primary's now; serve it with `statepool store serve`")
    return 0


def _witness(options: argparse.Namespace) -> int:
    from statepool.store.net.witness import Voting

    voting = Voting(options.path, options.listen, options.lease)
    return _run(voting.start(), f"witness in {options.path} at {options.listen}", voting.stop)


def _run(start: Coroutine[Any, Any, None], says: str, stop: Any, wait: Any = None) -> int:
    """Until SIGTERM or SIGINT, or until ``wait`` ends with an error."""

    async def main() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        await start
        print(says, flush=True)
        ends = [asyncio.ensure_future(stopping.wait())]
        if wait is not None:
            ends.append(asyncio.ensure_future(wait()))
        try:
            done, others = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in others:
                task.cancel()
            for task in done:
                task.result()
        finally:
            await stop()

    asyncio.run(main())
    return 0
