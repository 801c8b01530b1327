"""Synchronous rollouts of groups on shared KV: chunks that move, scheduling by learnt lengths, drafts from siblings.

>>> from statepool.engine.engine import Engine                                     # doctest: +SKIP
>>> done = rollout(Engine(EngineConfig()), [Group("sum", tokens, size=8)])          # doctest: +SKIP
>>> done.by_group()["sum"][0].text                                                 # doctest: +SKIP

After Seer (arXiv 2511.14617). The tokens of a response are a function of (weights, seed, group, index) alone.
"""

from __future__ import annotations

from statepool.rollout.groups import ChunkRecord, Group, Response, Segment
from statepool.rollout.hosts import LocalHosts
from statepool.rollout.live import Progressed, Rollout, rollout
from statepool.rollout.speech import Speech
from statepool.rollout.tools import Tools

__all__ = [
    "ChunkRecord",
    "Group",
    "LocalHosts",
    "Progressed",
    "Response",
    "Rollout",
    "Segment",
    "Speech",
    "Tools",
    "rollout",
]
