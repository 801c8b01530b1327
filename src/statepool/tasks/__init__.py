"""Verifiable problems: a prompt, the tools it may use and an exact check of the answer."""

from statepool.tasks.base import Message, Problem, Task, Tool, Verdict

__all__ = ["Message", "Problem", "Task", "Tool", "Verdict"]
