"""The checksum: CPU instructions, table, and the reader's own, against another library's."""

from __future__ import annotations

import crc32c as library
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool.native import _store  # type: ignore[attr-defined]
from statepool.store.logreader import crc32c as plain


@given(st.binary(max_size=300), st.binary(max_size=40), st.integers(0, 2**32 - 1))
def test_all_of_them_are_equal(data: bytes, more: bytes, before: int) -> None:
    wanted = library.crc32c(data, before)
    assert _store.crc32c(data, before) == _store.crc32c_table(data, before) == plain(data, before) == wanted
    assert _store.crc32c(more, wanted) == library.crc32c(more, wanted)
    assert _store.crc32c(data + more) == _store.crc32c(more, _store.crc32c(data))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 3071, 3072, 3073, 6144, 9999, 1 << 20])
def test_sizes_around_the_three_parts(size: int) -> None:
    data = bytes(i * 7919 >> 3 & 255 for i in range(size))
    assert _store.crc32c(data) == _store.crc32c_table(data) == library.crc32c(data)


def test_known_value() -> None:
    assert _store.crc32c(b"123456789") == plain(b"123456789") == 0xE3069283
    assert _store.crc32c(bytes(4096)) != 0
