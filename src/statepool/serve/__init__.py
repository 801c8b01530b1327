"""The server: OpenAI and Anthropic endpoints in front of an engine in its own process. See docs/serve.md."""
