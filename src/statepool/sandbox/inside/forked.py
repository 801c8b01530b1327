"""What a kernel does where other forks run Python's hooks.

Those of the standard library make locks anew, which write to 150 pages of the template; here one thread forks, so no
lock is another's. Hooks of everybody else are run, in children only.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["after", "record"]

_register = os.register_at_fork
_hooks: list[dict[str, Callable[[], Any]]] = []


def record() -> None:
    """From now on, note who wants to hear of forks."""
    os.register_at_fork = _recorded  # type: ignore[assignment]


def _recorded(**hooks: Callable[[], Any]) -> None:
    _register(**hooks)  # for the forks of a tenant's own
    caller = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
    if caller not in sys.stdlib_module_names:
        _hooks.append(hooks)


def after() -> None:
    """In a fork that becomes a kernel: the thread's id, then the hooks."""
    threading.main_thread()._set_native_id()  # type: ignore[attr-defined]
    for moment, order in (("before", -1), ("after_in_child", 1)):
        for hooks in _hooks[::order]:
            if moment in hooks:
                hooks[moment]()
