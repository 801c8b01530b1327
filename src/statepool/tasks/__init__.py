"""Verifiable problems: a prompt, the tools it may use and an exact check of the answer."""

from statepool.tasks.base import ConversationJudge, Dialogue, Message, Problem, Task, Tool, Turn, Verdict

__all__ = ["ConversationJudge", "Dialogue", "Message", "Problem", "Task", "Tool", "Turn", "Verdict"]
