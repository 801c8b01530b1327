"""A small retrieval model, its questions, and what attention of any kind makes of its answers (``statepool probe``)."""
