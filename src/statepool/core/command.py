"""Running a command of the command line: what a user can repair is one line on stderr, never a traceback."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

from .errors import StatepoolError

__all__ = ["Adder", "Command", "Served", "adder", "run", "serve"]

_PARENT_POLL_SECONDS = 0.5

Command = Callable[[argparse.Namespace], int]
"""What a command does; answers its exit status."""


class Adder(Protocol):
    """Makes commands: answers the parser of one, for its options."""

    def __call__(
        self, name: str, text: str, run: Command | None = None, *, add_help: bool = True
    ) -> argparse.ArgumentParser:
        """``run`` is None where somebody else takes the command's arguments."""


def adder(tree: argparse.ArgumentParser) -> Adder:
    """What makes the commands of ``tree``."""
    commands = tree.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands", parser_class=_Mixed
    )

    def command(name: str, text: str, run: Command | None = None, *, add_help: bool = True) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", add_help=add_help)
        found.set_defaults(run=run)
        return found

    return command


class _Mixed(argparse.ArgumentParser):
    """Options may stand between arguments: argparse, up to Python 3.12.6, fills an optional argument with nothing as
    soon as an option follows the one before it, so that ``exec ID --shell LINE`` would have a word too many.
    """

    _mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse has it."""
        if self._mixing or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False


class Served(Protocol):
    """Something that serves in threads of its own."""

    def start(self) -> None:
        """Begin."""

    def close(self) -> None:
        """End."""


def serve(served: Served, announce: Callable[[], str], with_parent: bool) -> int:
    """Start ``served``, print one line once it answers, and close it when a signal asks for that.

    Args:
        served: what to run.
        announce: gives the line, which whoever started this process may wait for.
        with_parent: end as well when the process that started this one has.
    """
    stop, parent = threading.Event(), os.getppid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    served.start()
    print(announce(), flush=True)
    while not stop.wait(_PARENT_POLL_SECONDS):
        if with_parent and os.getppid() != parent:
            break
    served.close()
    return 0


def run(program: str, options: argparse.Namespace) -> int:
    """Run the command that ``options`` name.

    Returns:
        Its status; 2 for what a user can repair, which is one line on stderr; 130 after Ctrl-C; 0 if whoever read the
        output has left.
    """
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except StatepoolError as error:
        print(f"{program} {options.command}: {error.message}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "statepool":
            raise
        print(f"{program} {options.command}: {_remedy(error.name.partition('.')[0])}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # say nothing at exit either
        return 0
    except OSError as error:
        if error.strerror is None:
            raise
        about = f": {error.filename}" if error.filename else ""
        print(f"{program} {options.command}: {error.strerror}{about}", file=sys.stderr)
        return 2
    return status


def _remedy(package: str) -> str:
    """What to install for ``package``, by the extras of this distribution that have one of its name."""
    from importlib.metadata import requires  # costs more than most commands take to start

    name, extras = package.replace("_", "-"), []
    for line in requires("statepool") or ():
        found = re.match(r"""([\w-]+).*extra == "([\w-]+)\"""", line)
        if found is not None and f"{found[1]}-".startswith(f"{name}-"):
            extras.append(f"pip install 'statepool[{found[2]}]'")
    return f"needs the package {package}" + (f": {' or '.join(extras)}" if extras else "")
