"""Synthetic problems that need real attention: needles, variables, addition, echoes and tool calls.

Each family is a `Task` and also draws whole conversations (`Family.draw`), which is what the bundled model learns from.
"""

from statepool.tasks.synthetic.calls import CALLS
from statepool.tasks.synthetic.chains import CHAINS
from statepool.tasks.synthetic.echo import ECHO
from statepool.tasks.synthetic.episode import Episode, Family
from statepool.tasks.synthetic.facts import FACTS
from statepool.tasks.synthetic.sums import SUMS

FAMILIES: dict[str, Family] = {family.name: family for family in (FACTS, CHAINS, SUMS, ECHO, CALLS)}
"""Every family by name."""

__all__ = ["CALLS", "CHAINS", "ECHO", "FACTS", "FAMILIES", "SUMS", "Episode", "Family"]
