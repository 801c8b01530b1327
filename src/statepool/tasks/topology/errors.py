"""What can be wrong with a triangulation, a curve or a certificate."""

from __future__ import annotations

from statepool.core.errors import Corruption, InvalidRequest, Unavailable

__all__ = ["BadCertificate", "InvalidCurve", "InvalidManifold", "OutOfTime"]


class InvalidManifold(InvalidRequest):
    """The gluing is no orientable ideal triangulation with one boundary component of genus two or more."""

    code = "invalid_manifold"


class InvalidCurve(InvalidRequest):
    """The weights are those of no slope: no curve, several curves, or one that bounds a disc in the boundary."""

    code = "invalid_curve"


class BadCertificate(Corruption):
    """A certificate claims what does not follow from it, or cannot be read."""

    code = "bad_certificate"


class OutOfTime(Unavailable):
    """A computation of another program was ended at its time limit."""

    code = "out_of_time"
