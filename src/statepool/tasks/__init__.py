"""Verifiable problems: a prompt, the tools it may use and an exact check of the answer."""

from statepool.tasks.base import Dialogue, Message, Problem, Task, Tool, Turn, Verdict

__all__ = ["Dialogue", "Message", "Problem", "Task", "Tool", "Turn", "Verdict"]
