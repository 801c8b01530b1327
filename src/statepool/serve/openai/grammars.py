"""JSON schemas of requests as grammars."""

from __future__ import annotations

import json
from typing import Any

from statepool.core.errors import InvalidRequest
from statepool.engine.request import GrammarSpec


def json_schema_grammar(schema: dict[str, Any], param: str) -> GrammarSpec:
    """A grammar for documents that fit ``schema``.

    Raises:
        InvalidRequest: ``schema`` cannot be written as JSON text.
    """
    try:
        body = json.dumps(schema, ensure_ascii=False)
        body.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{param} is no JSON schema: {error}", param=param) from error
    return GrammarSpec("json_schema", body)
