"""Handle additions on simple 3-manifolds: slopes on the boundary, 2-handles, distances, and verdicts with certificates.

After Lou and Zhang (arXiv 1810.09649): two separating slopes that make a simple manifold boundary-reducible cross at
most 8 times. Nothing here is a proof of that; see docs/topology.md for what a scan shows and what it does not.

Example:
    >>> from statepool.tasks import topology
    >>> boundary = topology.Boundary(topology.from_isosig("cMcabbjdw"))
    >>> slopes = list(boundary.slopes(3))
    >>> topology.decide(boundary, slopes[0]).verdict
    'simple'
"""

from importlib import import_module
from typing import Any

# Where names live: the checker must be importable without numpy and the native module. No module is called like a name,
# since importing a module puts it in its package under its own.
_HOMES = {
    "BadCertificate": "errors",
    "Boundary": "boundary",
    "Checker": "checker",
    "Decision": "handles",
    "InvalidCurve": "errors",
    "InvalidManifold": "errors",
    "Manifold": "manifold",
    "Plan": "scans",
    "Slope": "boundary",
    "attach_2handle": "handles",
    "census": "censuses",
    "decide": "handles",
    "from_isosig": "manifold",
    "scan": "scans",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
