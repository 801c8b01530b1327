"""Bugs, one edit each, and the test that must notice.

A test that passes with the edit in place proves less than it seems to.
"""

from __future__ import annotations

from tests.store.mutants import around, core
from tests.store.mutants.mutant import Mutant

MUTANTS: list[Mutant] = core.BUGS + around.BUGS
