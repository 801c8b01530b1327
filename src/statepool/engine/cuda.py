"""Is there a CUDA device to run on? Asked of the driver, so that a machine without one never imports torch."""

from __future__ import annotations

import ctypes
import importlib.util


def devices() -> int:
    """CUDA devices that the driver reports; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def missing() -> str | None:
    """Why the ``cuda`` backend cannot run here; ``None`` if it can."""
    if not devices():
        return "the CUDA driver is absent or reports no device"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed; install statepool[gpu]"
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device; a build for CPU never does"
    return None
