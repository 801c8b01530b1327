"""Blocks copied or received with their checksum, against the xxhash package, on every instruction set."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from statepool.kv.pool import checksum
from statepool.native import kernels

if kernels is None:
    pytest.skip("needs the native module", allow_module_level=True)

NAMES = ("generic", "avx2", "avx512", "amx")
ISAS = NAMES[: NAMES.index(kernels.best_isa()) + 1]
# Around every border of XXH3's stripes and segments, and where copies go past the caches.
SIZES = [241, 255, 256, 257, 319, 320, 321, 1023, 1024, 1025, 1088, 1089, 2048, 2049, 16384, 100_003]
SIZES += [(256 << 10) - 1, 256 << 10, (256 << 10) + 1, (1 << 20) + 77]


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    isa = kernels.isa()
    yield
    kernels.set_isa(isa)


def drawn(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def copied(source: np.ndarray, shift: int) -> None:
    """The copy and its sum are those of the package, and no byte beside the target is touched."""
    want = xxhash.xxh3_64_intdigest(source)
    for isa in ISAS:
        kernels.set_isa(isa)
        around = np.full(source.size + 128 + shift, 0xA5, np.uint8)
        target = around[64 + shift : 64 + shift + source.size]
        assert kernels.copy_checked(source, target) == want
        assert np.array_equal(target, source)
        assert (around[: 64 + shift] == 0xA5).all() and (around[64 + shift + source.size :] == 0xA5).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [0, 1, 33])
def test_copies_have_the_sum_of_the_package(size: int, shift: int) -> None:
    copied(drawn(size + shift)[shift:], shift)


def test_copies_past_the_caches_end_at_their_target() -> None:
    around = np.full((1 << 20) + 4096, 0xA5, np.uint8)
    start = -around.ctypes.data % 64 + 64
    target, source = around[start : start + (1 << 20)], drawn(1 << 20)
    assert kernels.copy_checked(source, target) == xxhash.xxh3_64_intdigest(source)
    assert np.array_equal(target, source)
    assert (around[:start] == 0xA5).all() and (around[start + (1 << 20) :] == 0xA5).all()


@given(st.integers(241, 5000), st.integers(0, 2**32))
def test_copies_of_any_length(size: int, seed: int) -> None:
    copied(drawn(size, seed), 0)


def test_what_does_not_fit_is_refused() -> None:
    for source, target in ((240, 240), (300, 299)):
        with pytest.raises(ValueError, match="must have"):
            kernels.copy_checked(drawn(source), np.zeros(target, np.uint8))
    with pytest.raises(ValueError, match="must have"):
        kernels.receive_checked(0, [np.zeros(240, np.uint8)], 1.0)


@pytest.mark.parametrize("isa", ISAS)
def test_blocks_are_received_however_they_are_cut(isa: str) -> None:
    kernels.set_isa(isa)
    sizes = [4096, 1 << 20, 300, 70_001]
    blocks = [drawn(size, i) for i, size in enumerate(sizes)]
    here, there = socket.socketpair()
    here.settimeout(10)

    def send() -> None:
        data, at, rng = b"".join(block.tobytes() for block in blocks), 0, np.random.default_rng(7)
        while at < len(data):
            cut = int(rng.choice([1, 63, 1024, 5000, 200_000]))
            there.sendall(data[at : at + cut])
            at += cut

    thread = threading.Thread(target=send)
    thread.start()
    out = [np.zeros(size, np.uint8) for size in sizes]
    sums = checksum.receive_checked(here, out)
    thread.join()
    assert sums == [xxhash.xxh3_64_intdigest(block) for block in blocks]
    assert all(np.array_equal(a, b) for a, b in zip(out, blocks, strict=True))
    here.close()
    there.close()


def test_a_sender_that_leaves_or_stands_still_is_told_apart() -> None:
    for leaves in (True, False):
        here, there = socket.socketpair()
        here.settimeout(0.05)
        there.sendall(bytes(1000))
        if leaves:
            there.close()
        with pytest.raises(ConnectionResetError if leaves else TimeoutError):
            checksum.receive_checked(here, [np.zeros(4096, np.uint8)])
        assert kernels.receive_checked(here.fileno(), [np.zeros(300, np.uint8)], 0.01) == (
            [],
            -1 if leaves else errno.ETIMEDOUT,
        )
        here.close()
        there.close()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("size", [16, 240, 241, 300_000])
def test_the_twin_gives_the_same_sums(monkeypatch: pytest.MonkeyPatch, native: bool, size: int) -> None:
    if not native:
        monkeypatch.setattr(checksum, "kernels", None)
    block, target = drawn(size), np.zeros(size, np.uint8)
    want = xxhash.xxh3_64_intdigest(block)
    assert checksum.checksum(block) == checksum.copy_checked(target, block) == want
    here, there = socket.socketpair()
    here.settimeout(10)
    thread = threading.Thread(target=there.sendall, args=(block.tobytes(),))
    thread.start()
    received = np.zeros(size, np.uint8)
    assert checksum.receive_checked(here, [received]) == [want]
    thread.join()
    assert np.array_equal(received, block) and np.array_equal(target, block)
    here.close()
    there.close()
