"""What can be wrong with a sequence, a record of one or a search."""

from __future__ import annotations

from statepool.core.errors import Corruption, InvalidRequest

__all__ = ["BadCertificate", "InvalidSequence"]


class InvalidSequence(InvalidRequest):
    """Symbols, length, alphabet or number of codes do not fit."""

    code = "invalid_sequence"


class BadCertificate(Corruption):
    """A certificate claims what its sequence does not have, or cannot be read."""

    code = "bad_certificate"
