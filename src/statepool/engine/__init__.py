"""The engine: a model, its KV blocks and a step loop. See docs/engine.md."""
