"""Sequence design with exact verification: codes for radar and communications, judged in whole numbers and fractions.

After HpGAN (arXiv 2012.05645) and AlphaSeq (arXiv 1810.01218), with the classical searches they have to beat.

Example:
    >>> from statepool.tasks import sequences
    >>> barker = sequences.parse("+++++--++-+-+")
    >>> str(sequences.make("mmf-sir").score([barker]).exact)
    '37'
"""

from statepool.tasks.sequences.codes import Code, parse
from statepool.tasks.sequences.errors import BadCertificate, InvalidSequence
from statepool.tasks.sequences.filters import Filter, best_filter, sir
from statepool.tasks.sequences.objectives import Objective, Score, make
from statepool.tasks.sequences.records import Record, certify, read_records, verify
from statepool.tasks.sequences.sets import mate, zone
from statepool.tasks.sequences.symmetry import orbit_key

__all__ = [
    "BadCertificate",
    "Code",
    "Filter",
    "InvalidSequence",
    "Objective",
    "Record",
    "Score",
    "best_filter",
    "certify",
    "make",
    "mate",
    "orbit_key",
    "parse",
    "read_records",
    "sir",
    "verify",
    "zone",
]
