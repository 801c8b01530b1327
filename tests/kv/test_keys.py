from hypothesis import given
from hypothesis import strategies as st

from statepool.kv import block_keys, root_key

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=100)


@given(TOKENS, TOKENS, st.integers(1, 20))
def test_equal_keys_mean_equal_prefixes(a, b, size):
    root = root_key("model")
    for i, (x, y) in enumerate(zip(block_keys(a, size, root), block_keys(b, size, root), strict=False)):
        assert (x == y) == (a[: (i + 1) * size] == b[: (i + 1) * size])


@given(TOKENS, TOKENS)
def test_known_keys_are_a_shortcut(a, b):
    root = root_key("model")
    assert block_keys(a + b, 16, root, block_keys(a, 16, root)) == block_keys(a + b, 16, root)


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_roots_differ_when_any_part_does(a, b):
    assert (root_key(*a) == root_key(*b)) == (a == b)


def test_salt_reaches_every_key():
    tokens = list(range(64))
    a, b = (block_keys(tokens, 16, root_key("model", salt)) for salt in ("alice", "bob"))
    assert not set(a) & set(b)
    assert len(set(a)) == 4
    assert all(len(key) == 16 for key in a)
