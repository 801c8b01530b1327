"""Where a model lives: a directory, the bundled model, or a hub id."""

from __future__ import annotations

from pathlib import Path

from statepool import bundled
from statepool.core.errors import InvalidCheckpoint

_FILES = ["*.json", "*.safetensors", "*.jinja"]


def resolve(model: str) -> Path:
    """The directory of ``model``: a bundled name, a path, or an ``owner/name`` id from the hub's cache or the hub.

    Raises:
        InvalidCheckpoint: nothing of that name can be had.
    """
    if model in bundled.NAMES:
        return bundled.path(model)
    path = Path(model).expanduser()
    if path.exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        return path
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise InvalidCheckpoint(
            f"{model!r} is no directory, and hub ids need the huggingface_hub package", param="model"
        ) from None
    try:
        return Path(snapshot_download(model, allow_patterns=_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidCheckpoint(
            f"model {model!r} is neither a directory nor to be had from the hub: {reason}", param="model"
        ) from None
