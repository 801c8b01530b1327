"""What can go wrong with a sandbox, beside a bad argument (``InvalidRequest``)."""

from __future__ import annotations

from statepool.core.errors import StatepoolError

__all__ = ["IsolationUnavailable", "NotQuiescent", "SandboxError", "SandboxGone", "SlotFailed"]


class SandboxError(StatepoolError):
    """Base of what can go wrong with a sandbox."""

    code = "sandbox_error"


class IsolationUnavailable(SandboxError):
    """This host cannot give the isolation that was asked for. Nothing weaker was started."""

    status = 501
    code = "isolation_unavailable"


class SandboxGone(SandboxError):
    """The sandbox, process, context or snapshot does not exist or has ended."""

    status = 404
    code = "sandbox_not_found"


class NotQuiescent(SandboxError):
    """A snapshot would lose something that lives now: a process, a thread, a socket. The message names it."""

    status = 409
    code = "not_quiescent"


class SlotFailed(SandboxError):
    """A slot could not be made, or died. The sandbox in it is lost; the pool makes a new slot."""

    status = 503
    code = "slot_failed"
