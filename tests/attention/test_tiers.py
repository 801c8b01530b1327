"""KV beyond memory: bits do not depend on what lies where, the budget holds, and a bad file is an error."""

from __future__ import annotations

import gc
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from tests.e2e.conftest import run_server
from tests.engine.conftest import checkpoint, make_engine  # noqa: F401
from tests.engine.test_determinism import DISTURBANCES, bits, disturbed, draw_request
from tests.small_models import write_model

from statepool.core.config import Settings
from statepool.core.errors import InvalidConfig
from statepool.engine.attention.wave import WaveBuffer, WaveConfig
from statepool.engine.attention.wave.index import SegmentView
from statepool.engine.attention.wave.segment import Segment
from statepool.engine.config import EngineConfig
from statepool.engine.engine import Engine
from statepool.engine.request import Request, SamplingParams
from statepool.engine.tiered import Split
from statepool.kv import KVLayout, TierFailure
from statepool.kv.tiers import TieredBlocks, open_scratch
from statepool.native import kernels

CONFIG = WaveConfig(update_segment=64, segment=256, shortest=0, local=16, tokens_per_cluster=8, retrieve=0.1, least=0)
LAYOUT = KVLayout(3, 2, 32)


def greedy(count):
    return SamplingParams(max_tokens=count, temperature=0.0, logprobs=0, ignore_eos=True)


# -- clusters in a file ------------------------------------------------------------------------------


def views(buffer, tokens=1000, dtype=np.uint16, config=CONFIG):
    """The same keys and values twice: clusters in memory, and in the buffer's file."""
    rng = np.random.default_rng(tokens)
    keys, values = rng.standard_normal((2, 2, tokens, 32)).astype(np.float32)
    if dtype == np.uint16:
        keys, values = ((part.view(np.uint32) >> 16).astype(np.uint16) for part in (keys, values))
    made = []
    for store in (lambda segment: segment, buffer.store):
        view = SegmentView(2, 32, dtype == np.uint16, config)
        view.advance(
            config.indexed(tokens),
            lambda a, b, keep=store: keep(Segment.build(keys[:, a:b], values[:, a:b], a, config)),
        )
        made.append(view)
    return made


def queries(count):
    return np.random.default_rng(9).standard_normal((count, 6, 32)).astype(np.float32) * 2


@pytest.mark.parametrize("background", [True, False], ids=["thread", "inline"])
@pytest.mark.parametrize("pages", [0, 1, 20, 10_000], ids=["no cache", "one page", "small", "all"])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32], ids=["bf16", "float32"])
def test_clusters_in_a_file_give_the_bits_of_memory(dtype, pages, background):
    row = 32 * np.dtype(dtype).itemsize
    buffer = WaveBuffer(row, pages * 16 * row, background=background)
    memory, file = views(buffer, dtype=dtype)
    for query in queries(40):
        for read in (None, 3, memory.native.clusters):
            ours, theirs = file.partial(query, 0.2, read=read), memory.partial(query, 0.2, read=read)
            assert all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True))
    counts = buffer.counts
    assert counts.misses > 0 and (counts.hits > 0) == (pages > 0)
    if pages == 10_000:
        assert counts.evicted == 0


def test_what_was_read_lately_is_in_memory():
    """Against an LRU written out: all hits first, then room for the misses in their order, oldest out first."""
    row, capacity = 64, 60
    buffer = WaveBuffer(row, capacity * 16 * row, background=False)
    _, file = views(buffer)
    segments, kept, hits, misses = file.segments, [], 0, 0
    pages = []
    for head in (0, 1):
        each = np.concatenate([np.diff(s.offsets[head]) for s in segments])
        pages.append(-(-each // 8))
    for query in queries(200):
        zones = np.zeros((2, file.native.clusters), np.int32)
        file.partial(query, 0.2, zones=zones)
        wanted = [(h, c) for h in (0, 1) for c in np.flatnonzero(zones[h] == 2).tolist()]
        found = [w for w in wanted if w in kept]
        fresh = [w for w in wanted if w not in kept]
        hits, misses = hits + len(found), misses + len(fresh)
        kept = [w for w in kept if w not in found] + found
        touched = len(found)
        for head, cluster in fresh:
            need = pages[head][cluster]
            while capacity - sum(pages[h][c] for h, c in kept) < need and len(kept) > touched:
                kept.pop(0)
            if capacity - sum(pages[h][c] for h, c in kept) >= need:
                kept.append((head, cluster))
                touched += 1
        assert (buffer.counts.hits, buffer.counts.misses) == (hits, misses)
    assert hits > 100 and misses > 100


def test_segments_that_go_give_back_memory_and_file():
    buffer = WaveBuffer(64, 500 * 16 * 64)
    _, file = views(buffer)
    (query,) = queries(1)
    before = file.partial(query, 0.2)
    file.advance(0, lambda *_: pytest.fail("nothing is to be loaded"))
    for _ in range(20):  # would fill pages and file if either were kept
        _, again = views(buffer)
        assert again.partial(query, 0.2)[2].tobytes() == before[2].tobytes()
        again.advance(0, lambda *_: pytest.fail("nothing is to be loaded"))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda fd: os.ftruncate(fd, 4096), "the file ends there"),
        (lambda fd: [os.pwrite(fd, b"\0" * 512, at) for at in range(0, 1 << 19, 1024)], "do not match their checksum"),
        # Address 0 of a process cannot be read: the system answers EIO.
        (lambda fd: os.dup2(os.open("/proc/self/mem", os.O_RDONLY), fd), "Input/output error"),
    ],
    ids=["truncated", "overwritten", "unreadable"],
)
def test_a_bad_file_is_an_error_and_nothing_bad_is_kept(harm, message, tmp_path):
    path = tmp_path / "clusters"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    buffer = WaveBuffer.__new__(WaveBuffer)
    buffer.native = kernels.ClusterCache(fd, 64, 1000, True)
    memory, file = views(buffer)
    good = path.read_bytes()
    harm(fd)
    (query,) = queries(1)
    for _ in range(2):
        with pytest.raises(TierFailure, match=message):
            file.partial(query, 0.2)
    os.dup2(os.open(path, os.O_RDWR), fd)
    path.write_bytes(good)
    assert file.partial(query, 0.2)[2].tobytes() == memory.partial(query, 0.2)[2].tobytes()


def test_a_full_disk_is_an_error():
    buffer = WaveBuffer.__new__(WaveBuffer)
    buffer.native = kernels.ClusterCache(os.open("/dev/full", os.O_RDWR), 64, 10, True)
    with pytest.raises(TierFailure, match="No space left on device"):
        views(buffer)


# -- blocks in a file --------------------------------------------------------------------------------


def test_blocks_come_back_as_they_were_written():
    """Random writes over few frames against a plain dictionary."""
    rng = random.Random(4)
    tiers, truth = TieredBlocks(LAYOUT, 40, 6), {}
    for step in range(300):
        blocks = rng.sample(range(40), rng.randint(1, 5))
        partial = [block for block in blocks if rng.random() < 0.5]
        frames = tiers.enter(blocks, partial)
        for block in blocks:
            data = tiers.storage[frames[block]]
            if block in partial and block in truth:
                assert data.tobytes() == truth[block].tobytes()
            data[...] = (
                (np.arange(data.size, dtype=np.uint64) * (step + 2) + block).astype(np.uint16).reshape(data.shape)
            )
            truth[block] = data.copy()
        asked = np.array(rng.choices(sorted(truth), k=rng.randint(1, 8)), np.int32)
        layer = rng.randrange(3)
        pool, at, where = tiers.place(layer, asked)
        assert all(
            pool[w, at].tobytes() == truth[b][layer].tobytes() for b, w in zip(asked.tolist(), where, strict=True)
        )
        seen = [window[i, 0].copy() for window, size in tiers.windows(layer, asked, 3) for i in range(size)]
        assert all(s.tobytes() == truth[b][layer].tobytes() for b, s in zip(asked.tolist(), seen, strict=True))
    blocks = sorted(truth)
    assert tiers.read(blocks).tobytes() == np.stack([truth[b] for b in blocks]).tobytes()
    assert tiers.bytes_read > 0
    tiers.write(blocks, np.stack([truth[b] ^ 5 for b in blocks]))
    assert tiers.read(blocks).tobytes() == np.stack([truth[b] ^ 5 for b in blocks]).tobytes()


@pytest.mark.parametrize("kind", ["short", "flipped"])
def test_a_bad_block_is_an_error(kind):
    tiers = TieredBlocks(LAYOUT, 10, 2)
    for block in range(4):
        tiers.storage[tiers.enter([block], [])[block]] = block + 1
    if kind == "short":
        os.ftruncate(tiers._fd, 512)
    else:
        page = np.frombuffer(memoryview(bytearray(8192)), np.uint8)
        aligned = page[-page.ctypes.data % 512 :][:512]
        aligned[:] = 9
        os.pwrite(tiers._fd, aligned.data, 0)
    with pytest.raises(TierFailure, match="the file ends there" if kind == "short" else "do not match their checksum"):
        tiers.place(0, np.array([0], np.int32))
    assert (tiers.read([3]) == 4).all()


def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(InvalidConfig, match="kv_folder: /nowhere cannot be written: No such file"):
        open_scratch("/nowhere")


# -- the engine ----------------------------------------------------------------------------------------

WAVE = (
    "wave:shortest=0,update_segment=64,segment=256,tokens_per_cluster=4,local=8,"
    "retrieve=0.1,least=0,estimate=0.3,iterations=3"
)


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    """Eight layers, so that areas for one layer are a small part of the whole."""
    path = tmp_path_factory.mktemp("long") / "model"
    return write_model(path, num_hidden_layers=8, max_position_embeddings=4096)


def engine(model, **settings):
    defaults = {"kv_bytes": 8 << 20, "max_batched_tokens": 128, "max_seqs": 2, "threads": 1}
    return Engine(EngineConfig(model=str(model), **{**defaults, **settings}))


BUDGETED = [
    "full",
    "wave:update_segment=256,local=16",
    "wave:update_segment=256,first=1",
    "moba:block=64,topk=3,last=1",
]


@pytest.mark.parametrize("attention", BUDGETED)
def test_a_context_of_four_times_the_budget_has_the_bits_of_memory(long_model, attention):
    tokens = tuple(random.Random(1).randrange(256) for _ in range(4040))
    request = Request("a", tokens, greedy(20 if attention != "full" else 3))
    expected = engine(long_model, attention=attention).generate([request])["a"]
    tiered = engine(long_model, attention=attention, kv_budget=2 << 20)
    assert bits(tiered.generate([request])["a"]) == bits(expected)
    assert tiered.runner.blocks.bytes_read > 0
    held = tiered.runner.blocks.memory
    wave = tiered.runner.backends[-1]
    if attention.startswith("wave"):
        held += wave.buffer.native.pages * wave.buffer.native.page_bytes + wave.segments.bytes
        assert wave.buffer.counts.misses > 0
    assert held <= 2 << 20


KINDS = sorted(DISTURBANCES)


@pytest.mark.parametrize("case", range(4 * len(KINDS)))
def test_same_bits_whatever_happens(case, make_engine, monkeypatch):  # noqa: F811
    """The engine's own disturbances, over a pool of which as little as a step can do with is in memory."""
    kind, rng = KINDS[case % len(KINDS)], random.Random(2000 + case)
    wave = WAVE.replace("=64", "=32").replace("=256", "=64")
    attention = ("full", wave, "moba:block=16,topk=2", wave)[case % 4]
    if kind == "session" and attention == wave:
        attention = "full"
    request = draw_request(rng)
    alone = make_engine(attention=attention).generate([request])["target"]

    def least(cls, config, layout, blocks, wave):
        return cls(
            min(-(-config.max_batched_tokens // 16) + 2 * config.max_seqs, blocks), 0, 1 << 20, rng.choice([0, 9999])
        )

    monkeypatch.setattr(Split, "of", classmethod(least))

    def tiered(**settings):
        return make_engine(attention=attention, kv_budget=1, **{"max_batched_tokens": 32, "max_seqs": 4, **settings})

    assert bits(disturbed(kind, request, rng, tiered, "int8")) == bits(alone)


def test_the_budget_is_written_as_a_size():
    settings = Settings([EngineConfig])
    settings.read_flags({"kv_bytes": "2GiB", "kv_budget": "512MiB", "wave_bytes": "1MiB"})
    config = settings.build(EngineConfig)
    assert (config.kv_bytes, config.kv_budget, config.wave_bytes) == (2 << 30, 512 << 20, 1 << 20)
    settings.read_flags({"kv_budget": "half"})
    with pytest.raises(InvalidConfig, match=r"kv_budget \(from --kv-budget\): 'half' is not a size"):
        settings.build(EngineConfig)


def test_a_budget_that_cannot_work_says_what_would(long_model):
    for attention in ("full", "wave", "moba"):
        pattern = r"kv_budget 1000 is too small for kv_bytes 8388608: (\d+) bytes are needed"
        with pytest.raises(InvalidConfig, match=pattern) as refused:
            engine(long_model, attention=attention, kv_budget=1000)
        needed = int(re.search(pattern, str(refused.value))[1])
        with pytest.raises(InvalidConfig, match=f"{needed} bytes are needed"):
            engine(long_model, attention=attention, kv_budget=needed - 1)
        engine(long_model, attention=attention, kv_budget=needed)
    with pytest.raises(InvalidConfig, match="block must be at most 1024 with kv_budget, got 2048"):
        engine(long_model, attention="moba:block=2048", kv_budget=2 << 20)
    with pytest.raises(InvalidConfig, match="native backend"):
        engine(long_model, attention="full", kv_budget=2 << 20, backend="torch")


@pytest.mark.parametrize("attention", ["full", "wave", "moba:block=64,topk=3"])
def test_a_bad_file_ends_the_requests_of_the_step_and_no_other(long_model, attention):
    tokens = tuple(random.Random(2).randrange(256) for _ in range(3000))
    gc.collect()  # an engine of an earlier test that goes meanwhile would leave its file's number to this one's
    before = open_files()
    made = engine(long_model, attention=attention, kv_budget=2 << 20)
    made.submit(Request("lost", tokens, greedy(20)))
    outputs = []
    while not outputs:
        outputs = made.step()
    scratch = [int(fd) for fd in open_files() - before if is_scratch(fd)]
    assert len(scratch) == (2 if attention == "wave" else 1)
    for fd in scratch:
        os.ftruncate(fd, 0)
    while outputs[-1].finish_reason is None:
        outputs = made.step()
    assert outputs[-1].finish_reason == "error" and "slow tier: reading" in outputs[-1].error
    assert made.pool.free == made.pool.total
    request = Request("next", tokens[:200], greedy(5))
    expected = engine(long_model, attention=attention).generate([request])["next"]
    assert bits(made.generate([request])["next"]) == bits(expected)
    os.dup2(os.open("/dev/full", os.O_RDWR), made.runner.blocks._fd)
    with pytest.raises(TierFailure, match=r"slow tier: writing .* failed: No space left on device"):
        made.generate([Request("full", tokens, greedy(1))])
    assert made.pool.free == made.pool.total and not made.has_work


def open_files():
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def is_scratch(fd):
    path = Path("/proc/self/fd") / fd
    return path.is_symlink() and str(path.readlink()).endswith("(deleted)")


def test_the_server_answers_a_context_of_four_times_the_budget(long_model):
    tokens = [random.Random(3).randrange(256) for _ in range(4040)]
    settings = {"kv_bytes": 8 << 20, "kv_budget": 2 << 20, "max_batched_tokens": 128, "max_seqs": 2}
    wanted = engine(long_model, attention="wave").generate([Request("a", tuple(tokens), greedy(8))])["a"]
    body = {"model": "model", "prompt": tokens, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    with run_server(long_model, engine={"attention": "wave", **settings}) as server:
        answer = server.http.post("/v1/completions", json=body, timeout=60).raise_for_status().json()
    assert answer["usage"]["prompt_tokens"] == 4040
    assert answer["choices"][0]["text"] == "".join(o.text for o in wanted)
