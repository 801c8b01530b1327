"""Keys of KV blocks: a hash chain, so that equal keys mean equal whole prefixes.

``key_i = BLAKE2b-128(key_{i-1} || tokens_i)`` with ``key_{-1}`` = the root key, which binds the model's
fingerprint, the KV layout and the tenant's salt. A key therefore says everything the bytes of a
block depend on, and travels unchanged to every tier and worker.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

KEY_BYTES = 16


def root_key(*parts: str) -> bytes:
    """The key before the first block: a hash of ``parts`` (fingerprint, layout, salt).

    Parts are length-prefixed, so ``("ab", "c")`` and ``("a", "bc")`` differ.
    """
    digest = blake2b(digest_size=KEY_BYTES)
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.digest()


def block_keys(tokens: Sequence[int], block_size: int, salt: bytes, known: Sequence[bytes] = ()) -> list[bytes]:
    """Keys of all full blocks of ``tokens``; a partial last block has none.

    Args:
        tokens: token ids, each below 2**32.
        block_size: tokens per block.
        salt: the root key.
        known: keys of the first blocks, if already computed; they are not computed again.
    """
    keys = list(known)
    previous = keys[-1] if keys else salt
    for start in range(len(keys) * block_size, len(tokens) - block_size + 1, block_size):
        raw = array("I", tokens[start : start + block_size]).tobytes()
        previous = blake2b(previous + raw, digest_size=KEY_BYTES).digest()
        keys.append(previous)
    return keys
