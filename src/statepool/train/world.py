"""What answers a model's turns during a run: the task's judge, the tools it names, or its own environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from statepool.core.errors import InvalidConfig
from statepool.engine.text.template import ChatTemplate
from statepool.engine.text.tools import PARSERS, pick
from statepool.tasks import Dialogue, Problem, Task
from statepool.train.dialogue import Limits, Tool, ToolDialogue
from statepool.train.python_tool import Interpreter, PythonLimits, PythonTool

if TYPE_CHECKING:
    from statepool.train.sandbox_tool import SandboxHost


@dataclass(frozen=True, slots=True)
class WorldConfig:
    """How tools are run.

    Args:
        tool_seconds: wall time of one call.
        tool_output: most characters of its reply.
        isolation: ``sandbox`` runs code in the sandboxes of ``statepool.sandbox``; ``process`` in processes with
            limits, which is no security boundary.

    Raises:
        InvalidConfig: a number that is not above 0.
    """

    tool_seconds: float = 2.0
    tool_output: int = 512
    isolation: Literal["sandbox", "process"] = "sandbox"

    def __post_init__(self) -> None:
        for name in ("tool_seconds", "tool_output"):
            if not getattr(self, name) > 0:
                raise InvalidConfig(f"{name} must be above 0, got {getattr(self, name)}", param=name)


class World:
    """Opens the world's side of conversations about a task's problems.

    Raises:
        InvalidConfig: no sandbox can be had on this machine.
    """

    def __init__(self, task: Task, model: Path, config: WorldConfig) -> None:
        self._task = task
        self._parser = PARSERS[pick(ChatTemplate.load(model).source)]
        self._config = config
        self._interpreter = Interpreter(PythonLimits(seconds=config.tool_seconds))
        self._sandboxes: SandboxHost | None = None

    def open(self, problem: Problem, group: int = 0) -> Dialogue:
        """The world's side of a conversation; those of one group have sandboxes forked from the same one.

        Raises:
            InvalidConfig: the task names a tool that nothing here can run.
        """
        opened = getattr(self._task, "open", None)
        if opened is not None:
            dialogue: Dialogue = opened(problem)
            return dialogue
        names = [tool["function"]["name"] for tool in self._task.tools(problem)]
        unknown = [name for name in names if name != "python"]
        if unknown:
            raise InvalidConfig(f"task {self._task.name!r} has a tool {unknown[0]!r} that nothing runs", param="task")
        tools = {name: self._python(group) for name in names}
        return ToolDialogue(self._task, problem, tools, self._parser, Limits(self._config.tool_output))

    def close(self) -> None:
        """End what runs tools."""
        self._interpreter.close()
        if self._sandboxes is not None:
            self._sandboxes.close()

    def _python(self, group: int) -> Tool:
        if self._config.isolation == "process":
            return PythonTool(self._interpreter)
        if self._sandboxes is None:
            from statepool.train.sandbox_tool import SandboxHost

            self._sandboxes = SandboxHost(self._config.tool_seconds)
        return self._sandboxes.tool(group)
