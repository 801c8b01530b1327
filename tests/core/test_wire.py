"""Messages between processes: what goes in comes out, and damage is named."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool.core.errors import Corruption
from statepool.core.wire import Codec


class Parcel(msgspec.Struct, tag=True):
    name: str
    content: object = None


codec: Codec[Parcel] = Codec(Parcel)
dtypes = st.sampled_from(["<f4", "<f8", "|u1", "<i4", "<u2"])


@given(st.text(max_size=20), dtypes, st.lists(st.integers(0, 4), max_size=3))
def test_arrays_keep_shape_type_and_bits(name, dtype, shape):
    array = np.random.default_rng(len(name)).integers(0, 255, shape).astype(dtype)
    back = codec.decode(codec.encode(Parcel(name, array)))
    assert back.name == name
    assert back.content.dtype == array.dtype
    assert back.content.shape == array.shape
    assert back.content.tobytes() == array.tobytes()


def test_an_array_that_is_not_contiguous_is_sent_in_order():
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert np.array_equal(codec.decode(codec.encode(Parcel("", array))).content, array)


@given(st.binary(max_size=40))
def test_noise_is_corruption_or_a_message(data):
    try:
        message = codec.decode(data)
    except Corruption:
        return
    assert isinstance(message, Parcel)


def test_what_cannot_be_sent_is_said():
    with pytest.raises(NotImplementedError, match="object cannot be sent"):
        codec.encode(Parcel("", object()))
