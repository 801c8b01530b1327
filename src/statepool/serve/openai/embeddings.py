"""``/v1/embeddings``: prompts in, unit vectors out."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.core.errors import InvalidRequest
from statepool.serve.openai.completion_schema import EmbeddingRequest
from statepool.serve.openai.completions import prompts_of
from statepool.serve.served_model import ServedModel


def prompts(body: EmbeddingRequest, model: ServedModel) -> list[tuple[int, ...]]:
    """Token ids of every input.

    Raises:
        InvalidRequest: an input is empty or too long, or another number of dimensions is wanted.
        NotFound: the model is not served here.
    """
    model.check_name(body.model)
    if body.dimensions is not None and body.dimensions != model.info.hidden_size:
        raise InvalidRequest(f"dimensions must be {model.info.hidden_size} or left out", param="dimensions")
    found = prompts_of(body.input, model, add_special=True, param="input")
    for prompt in found:
        model.room(prompt, 0, "input")
    return found


def answer(
    body: EmbeddingRequest, model: ServedModel, counts: list[int], vectors: list[npt.NDArray[np.float32]]
) -> dict[str, Any]:
    """The list of vectors, as floats or as base64 of little-endian float32."""
    as_text = body.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_text else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
    return {"object": "list", "model": model.id, "data": data, "usage": usage}
