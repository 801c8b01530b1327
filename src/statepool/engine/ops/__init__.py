"""The kernels in torch, with the names and signatures of ``statepool.native.kernels`` and the same bits.

The engine picks one of the two modules at start (``EngineConfig.backend``). Importing this package imports torch, so it
is imported only where it is used: where there is no native module, on another device, and in tests.
"""

from statepool.engine.ops.linear import Linear
from statepool.engine.ops.reference import (
    DecoderLayer,
    attention,
    attention_segments,
    embed,
    fold_segments,
    head,
    merge_segments,
    rms_norm,
)

__all__ = [
    "DecoderLayer",
    "Linear",
    "attention",
    "attention_segments",
    "embed",
    "fold_segments",
    "head",
    "merge_segments",
    "rms_norm",
]
