"""KV blocks: their keys, their layout in memory, and who holds which. See docs/kv.md."""

from statepool.kv.blocks import BlockPool, BlockTable
from statepool.kv.keys import block_keys, root_key
from statepool.kv.layout import KVLayout
from statepool.kv.tiers import TierFailure

__all__ = ["BlockPool", "BlockTable", "KVLayout", "TierFailure", "block_keys", "root_key"]
