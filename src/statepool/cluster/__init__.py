"""Processes of one platform: on this machine, or wherever a Ray cluster has room for them."""

from statepool.cluster.launch import Launcher, LocalLauncher, Process, Program, launcher

__all__ = ["Launcher", "LocalLauncher", "Process", "Program", "launcher"]
