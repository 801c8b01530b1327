"""Drivers: one engine each, run under the interpreter that has it (see turns.py)."""
