"""The errors a user can meet. Every room raises one of these at its edge.

Each carries a sentence that names the field and the fix, an HTTP ``status`` and a stable
``code`` so that a gateway can translate it without knowing the room it came from.
"""

from __future__ import annotations


class StatepoolError(Exception):
    """Base of all errors raised on purpose."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        """Name of the offending field, if there is one."""


class InvalidRequest(StatepoolError):
    """A field of a request is missing, of the wrong type or out of range."""

    status = 400
    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    """The prompt does not fit the model's context."""

    code = "context_length_exceeded"


class Unauthorized(StatepoolError):
    """The API key is missing or wrong."""

    status = 401
    code = "invalid_api_key"


class NotFound(StatepoolError):
    """The named model, session, response or file does not exist."""

    status = 404
    code = "not_found"


class PayloadTooLarge(StatepoolError):
    """The request body is larger than the server accepts."""

    status = 413
    code = "payload_too_large"


class Overloaded(StatepoolError):
    """The queue is full; retry after ``retry_after`` seconds."""

    status = 429
    code = "overloaded"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(StatepoolError):
    """The server is loading, draining, or lost a worker it needs."""

    status = 503
    code = "unavailable"


class InvalidCheckpoint(StatepoolError):
    """Model files are missing, truncated, or do not fit their config."""

    code = "invalid_checkpoint"


class InvalidConfig(StatepoolError):
    """A setting is unknown, of the wrong type, or impossible on this machine."""

    code = "invalid_config"


class OutOfBlocks(StatepoolError):
    """The KV pool cannot hold the request even when it is alone."""

    status = 400
    code = "kv_pool_too_small"


class Corruption(StatepoolError):
    """Stored bytes fail their checksum; nothing of them was used."""

    code = "corruption"


class KVLost(StatepoolError):
    """An attention worker is gone, and with it the keys and values it held; they can be computed again."""

    status = 503
    code = "kv_lost"


class StoreError(StatepoolError):
    """Base of what can go wrong with a durable store."""

    code = "store_error"


class StoreCorrupt(StoreError):
    """Stored bytes contradict their checksum or their neighbours. Nothing was changed or dropped."""

    code = "store_corrupt"


class StoreFormat(StoreError):
    """The files are no store, or a newer statepool wrote them."""

    code = "store_format"


class StoreLocked(StoreError):
    """Another process, or another object of this one, has the folder open."""

    status = 409
    code = "store_locked"


class StoreFull(StoreError):
    """The disk, the heap or the memory is exhausted. Nothing was changed."""

    status = 507
    code = "store_full"


class StoreReadOnly(StoreError):
    """The store takes no writes: it is closed, its folder cannot be written, or a write failed earlier."""

    status = 409
    code = "store_read_only"


class OutcomeUnknown(StoreError):
    """The disk did not confirm a write: it may or may not survive. Reopen the store and look."""

    code = "outcome_unknown"


class Conflict(StoreError):
    """What a transaction had read was changed by another meanwhile. Run it again."""

    status = 409
    code = "conflict"


class SnapshotExpired(StoreError):
    """A snapshot was held longer than its lease, and its version has been reclaimed."""

    status = 410
    code = "snapshot_expired"


class MirrorLost(StoreError):
    """No mirror follows the store now, so nothing is written at the level ``mirror``. Nothing was changed."""

    status = 503
    code = "mirror_lost"


class Fenced(StoreError):
    """A newer epoch or lock holder exists; what an older one sends is refused."""

    status = 409
    code = "fenced"
