"""Native kernels, or the reason why there are none.

``kernels`` is the extension module, or ``None`` where it is missing or switched off with ``STATEPOOL_NATIVE=0``;
``reason`` then says why, and has been logged once. ``STATEPOOL_ISA`` (generic, avx2, avx512, amx) lowers what is used.
"""

from __future__ import annotations

import logging
import os
from types import ModuleType

__all__ = ["kernels", "reason"]

kernels: ModuleType | None = None
reason: str | None = None

if os.environ.get("STATEPOOL_NATIVE", "1") == "0":
    reason = "switched off by STATEPOOL_NATIVE=0"
else:
    try:
        from . import _kernels  # type: ignore[attr-defined]  # compiled: no source for mypy to find

        kernels = _kernels
        _wanted = os.environ.get("STATEPOOL_ISA")
        if _wanted and _wanted != _kernels.isa():
            logging.getLogger(__name__).warning(
                "STATEPOOL_ISA=%s is unknown or this machine lacks it; %s runs instead", _wanted, _kernels.isa()
            )
    except ImportError as error:
        reason = f"the extension did not load: {error}"

if reason is not None:
    logging.getLogger(__name__).warning("native kernels are not in use (%s); the slow reference runs instead", reason)
