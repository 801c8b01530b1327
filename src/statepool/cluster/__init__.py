"""Processes of one platform: on this machine, or wherever a Ray cluster has room for them."""

from __future__ import annotations

from statepool.cluster.launch import Launcher, LocalLauncher, Process, Program

__all__ = ["Launcher", "LocalLauncher", "Process", "Program", "launcher"]


def launcher(ray: str | None) -> Launcher:
    """Who starts processes: Ray at an address, or without one this machine.

    Args:
        ray: address of a Ray cluster, ``auto`` for the one this machine belongs to, ``local`` for one made here.

    Raises:
        InvalidConfig: Ray is not installed, or does not answer at the address.
    """
    if ray is None:
        return LocalLauncher()
    from statepool.cluster.on_ray import RayLauncher

    return RayLauncher(ray)
