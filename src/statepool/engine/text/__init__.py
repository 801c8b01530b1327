"""Text in and out of the engine: tokenizer, templates, stop strings, grammars, tool calls.

Nothing here imports torch or the engine; each module is usable alone.
"""
