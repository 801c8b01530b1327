"""How far an iteration is, on a terminal: a bar, and the longest responses that still run."""

from __future__ import annotations

from typing import Any, TextIO

from statepool.rollout.live import Progressed

__all__ = ["View"]

_SHOWN = 6


class View:
    """Use it as a context manager; silent where ``file`` is no terminal."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._live: Any = None

    def __enter__(self) -> View:
        if self._file.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._file), refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, now: Progressed) -> None:
        """Draw ``now``."""
        if self._live is None:
            return
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        speed = now.tokens / now.seconds if now.seconds > 0 else 0.0
        head = Text(f"{now.done}/{now.total} responses, {now.tokens} tokens, {speed:.0f} tokens/s, {now.seconds:.1f} s")
        tail = Table.grid(padding=(0, 2))
        for name, tokens in now.running[:_SHOWN]:
            tail.add_row(name, f"{tokens} tokens")
        self._live.update(Group(head, ProgressBar(total=now.total, completed=now.done, width=60), tail))
