"""Attention where the KV is: stateless model workers, attention workers that own the blocks (Lamina, 2405.01814)."""
