"""``/v1/embeddings``: prompts in, unit vectors out."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from statepool.core.errors import InvalidRequest
from statepool.engine.request import Output, Request, SamplingParams
from statepool.serve.openai.completion_schema import EmbeddingRequest
from statepool.serve.openai.completions import prompts_of
from statepool.serve.served_model import ServedModel


class EmbeddingJob:
    """One call; its prompts run in the batch beside everybody else's requests."""

    def __init__(self, body: EmbeddingRequest, model: ServedModel, call_id: str) -> None:
        """Translate ``body``.

        Raises:
            InvalidRequest: an input is empty or too long, or another number of dimensions is wanted.
            NotFound: the model is not served here.
        """
        model.check_name(body.model)
        if body.dimensions is not None and body.dimensions != model.info.hidden_size:
            raise InvalidRequest(f"dimensions must be {model.info.hidden_size} or left out", param="dimensions")
        self._model = model.id
        self._as_text = body.encoding_format == "base64"
        self.requests = []
        for index, prompt in enumerate(prompts_of(body.input, model, add_special=True, param="input")):
            model.room(prompt, 0, "input")
            self.requests.append(Request(f"{call_id}-{index}", prompt, SamplingParams(max_tokens=0), embed=True))
        self._vectors: dict[str, tuple[float, ...]] = {}

    def push(self, output: Output) -> None:
        """Keep the vector that comes with the end of a prompt."""
        if output.embedding is not None:
            self._vectors[output.id] = output.embedding

    def answer(self) -> dict[str, Any]:
        """The list of vectors, as floats or as base64 of little-endian float32."""
        data = [
            {"object": "embedding", "index": index, "embedding": self._written(request.id)}
            for index, request in enumerate(self.requests)
        ]
        total = sum(len(request.prompt) for request in self.requests)
        usage = {"prompt_tokens": total, "total_tokens": total}
        return {"object": "list", "model": self._model, "data": data, "usage": usage}

    def _written(self, name: str) -> str | list[float]:
        vector = self._vectors[name]
        return base64.b64encode(np.array(vector, "<f4").tobytes()).decode() if self._as_text else list(vector)
