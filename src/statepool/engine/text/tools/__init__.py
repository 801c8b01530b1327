"""Tool calls in generated text, one file per format, found by name or by what a chat template writes."""

from __future__ import annotations

from statepool.engine.text.tools.hermes import HermesParser
from statepool.engine.text.tools.llama3 import Llama3Parser
from statepool.engine.text.tools.mistral import MistralParser
from statepool.engine.text.tools.pythonic import PythonicParser
from statepool.engine.text.tools.qwen3_coder import Qwen3CoderParser
from statepool.engine.text.tools.stream import Parsed, ToolCall, ToolParser

__all__ = ["PARSERS", "Parsed", "ToolCall", "ToolParser", "pick"]

PARSERS: dict[str, type[ToolParser]] = {
    "hermes": HermesParser,
    "llama3": Llama3Parser,
    "mistral": MistralParser,
    "pythonic": PythonicParser,
    "qwen3_coder": Qwen3CoderParser,
}
"""Format name -> parser class."""

_SIGNS = (
    ("<parameter=", "qwen3_coder"),
    ("[TOOL_CALLS]", "mistral"),
    ("<tool_call>", "hermes"),
    ("[func_name1(", "pythonic"),
    ("<|python_start|>", "pythonic"),
    ("<|python_tag|>", "llama3"),
    ("Environment: ipython", "llama3"),
)


def pick(template_source: str | None) -> str:
    """The format a chat template asks for; ``hermes`` if it shows none."""
    source = template_source or ""
    return next((name for sign, name in _SIGNS if sign in source), "hermes")
