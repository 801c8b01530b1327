"""KV blocks: their keys, their layout in memory, and who holds which. See docs/kv.md."""

from statepool.kv.blocks import BlockPool, BlockTable
from statepool.kv.keys import block_keys, root_key
from statepool.kv.layout import KVLayout

__all__ = ["BlockPool", "BlockTable", "KVLayout", "block_keys", "root_key"]
