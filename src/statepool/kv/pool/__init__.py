"""The shared pool of KV blocks: nodes that lend memory and disk, and how engines reach them. See docs/cluster.md."""

from statepool.kv.pool.client import Pool, PoolCounts
from statepool.kv.pool.node import Node, NodeConfig
from statepool.kv.pool.slots import SlotTable

__all__ = ["Node", "NodeConfig", "Pool", "PoolCounts", "SlotTable"]
