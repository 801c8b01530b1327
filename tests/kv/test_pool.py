"""Real nodes: threads and processes, sockets and memory, disks that lie, clients that die."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress

import numpy as np
import pytest
import xxhash
from tests.kv.pools import BLOCK, chain, client, empty, free_port, running, until
from tests.relays import relayed

from statepool.core.errors import InvalidConfig
from statepool.core.sockets import receive, send
from statepool.kv.pool import Node, NodeConfig, protocol
from statepool.kv.pool.link import NodeLink


@pytest.fixture(params=["unix", "tcp"])
def address(request, tmp_path):
    if request.param == "unix":
        return f"unix:{tmp_path / 'node'}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


def test_what_was_given_comes_back(address):
    keys, rows = chain(40)
    with running(address) as node:
        pool = client([address], BLOCK)
        assert pool.match(keys) == 0
        assert pool.save(keys[:30], rows[:30]) == 30
        assert pool.save(keys, rows) == 10, "only what is missing travels"
        assert pool.match([*keys[:5], b"?" * 16, *keys[5:]]) == 5
        out = empty(40)
        assert pool.load(keys, out) == 40
        assert all(np.array_equal(a, b) for a, b in zip(out, rows, strict=True))
        node._table.check()
        assert pool.counts.corrupt == pool.counts.failures == 0


def test_a_full_node_gives_up_the_oldest(address):
    (old, old_rows), (new, new_rows) = chain(40, 1), chain(40, 2)
    with running(address) as node:
        pool = client([address], BLOCK)
        pool.save(old, old_rows)
        pool.save(new, new_rows)
        assert pool.match(new) == 40
        assert node.stats().evicted == 16
        assert pool.match(old) == 24, "of one chain the last blocks go first"


def test_blocks_outlive_the_process_on_disk(tmp_path):
    keys, rows = chain(50)
    address, file = f"unix:{tmp_path / 'node'}", tmp_path / "blocks"
    with running(address, disk_path=file, memory_bytes=8 * BLOCK):
        pool = client([address], BLOCK)
        for i in range(0, 50, 5):  # in pieces that fit, each in time for the disk
            pool.save(keys[i : i + 5], rows[i : i + 5])
            until(lambda i=i: pool.links[0].lanes[0].stats().on_disk == i + 5)
    with running(address, disk_path=file, memory_bytes=64 * BLOCK) as node:
        pool, out = client([address], BLOCK), empty(50)
        assert node.stats().blocks == 0
        assert pool.load(keys, out) == 50
        assert all(np.array_equal(a, b) for a, b in zip(out, rows, strict=True))


def test_a_node_killed_while_it_writes_loses_blocks_but_never_lies(tmp_path):
    address, file = f"unix:{tmp_path / 'node'}", tmp_path / "blocks"
    random.seed(3)
    for trial in range(3):
        keys, rows = chain(400, 10 + trial)
        with node_process(address, file) as process:
            pool = client([address], BLOCK)
            writer = threading.Thread(target=pool.save, args=(keys, rows))
            writer.start()
            time.sleep(random.uniform(0.0, 0.05))
            process.kill()
            writer.join()
        with node_process(address, file):
            out = empty(400)
            got = client([address], BLOCK).load(keys, out)
            assert all(np.array_equal(a, b) for a, b in zip(out[:got], rows, strict=False))


@pytest.mark.parametrize("fault", ["bit", "truncate", "swap", "head", "memory", "wire"])
def test_damage_is_found_out(tmp_path, fault):
    assert campaign(tmp_path, fault, 10) == 10


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand_faults(tmp_path, record_property):
    found = 0
    for fault in ("bit", "truncate", "swap", "head", "memory", "wire"):
        (tmp_path / fault).mkdir()
        found += campaign(tmp_path / fault, fault, 500 if fault == "memory" else 100)
    record_property("found", found)
    assert found == 1000


def campaign(folder, fault, count):
    """Damage one thing, ``count`` times; how often a client took a good prefix and nothing else."""
    rng = random.Random(fault)
    keys, rows = chain(20)
    if fault == "wire":
        return sum(_loads_a_good_prefix(*_through_a_bad_wire(rng, keys, rows), rows) for _ in range(count))
    address, file = f"unix:{folder / 'node'}", folder / "blocks"
    if fault == "memory":
        found = 0
        with running(address) as node:
            pool = client([address], BLOCK)
            for _ in range(count):
                pool.save(keys, rows)
                lease, victim = node._table.read(99, keys, time.monotonic()), rng.randrange(20)
                node._bytes(lease.slots[victim])[rng.randrange(BLOCK)] ^= 1 << rng.randrange(8)
                node._table.release(lease.id)
                before, out = pool.counts.corrupt, empty(20)
                got = pool.load(keys, out)
                assert pool.counts.corrupt == before + 1
                assert pool.match(keys) == victim, "the bad block is gone for everybody"
                found += got == victim and _loads_a_good_prefix(got, out, rows)
        return found
    with running(address, disk_path=file):
        pool = client([address], BLOCK)
        pool.save(keys, rows)
        until(lambda: pool.links[0].lanes[0].stats().on_disk == 20)
    whole, found = bytearray(file.read_bytes()), 0
    for _ in range(count):
        file.write_bytes(_damaged(bytearray(whole), fault, rng))
        with running(address, disk_path=file):
            out = empty(20)
            found += _loads_a_good_prefix(client([address], BLOCK).load(keys, out), out, rows)
    return found


def _damaged(whole, fault, rng):
    place = -(-(64 + BLOCK) // 4096) * 4096
    at, other = (4096 + place * victim for victim in rng.sample(range(20), 2))
    if fault == "bit":
        whole[at + 64 + rng.randrange(BLOCK)] ^= 1 << rng.randrange(8)
    elif fault == "head":
        whole[at + rng.randrange(64)] ^= 1 << rng.randrange(8)
    elif fault == "truncate":
        return whole[: at + rng.randrange(BLOCK)]
    else:
        a, b = slice(at + 64, at + 64 + BLOCK), slice(other + 64, other + 64 + BLOCK)
        whole[a], whole[b] = whole[b], whole[a]
    return whole


def _through_a_bad_wire(rng, keys, rows):
    with running(f"tcp://127.0.0.1:{free_port()}") as node:
        client([node.config.listen], BLOCK).save(keys, rows)
        with flipping_proxy(node.config.listen, every=rng.randrange(BLOCK, 10 * BLOCK)) as bad:
            pool, out = client([bad], BLOCK), empty(20)
            got = pool.load(keys, out)
            assert got == 20 or pool.counts.corrupt + pool.counts.failures > 0
            return got, out


def _loads_a_good_prefix(got, out, rows):
    return got < 20 and all(np.array_equal(a, b) for a, b in zip(out[:got], rows, strict=False))


def test_a_client_that_dies_while_writing_leaves_no_slot_behind(tmp_path):
    address = f"unix:{tmp_path / 'node'}"
    with running(address) as node:
        script = (
            "import sys, os\nfrom statepool.kv.pool import protocol\nfrom statepool.kv.pool.link import NodeLink\n"
            f"link = NodeLink({address!r}, {BLOCK})\n"
            "link._ask(protocol.Begin([bytes([i]) * 16 for i in range(40)]), protocol.Granted)\n"
            "print('begun', flush=True)\nos.kill(os.getpid(), 9)\n"
        )
        child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert child.stdout == "begun\n"
        until(lambda: len(node._table._free) == 64)
        node._table.check()
        keys, rows = chain(64)
        assert client([address], BLOCK).save(keys, rows) == 64


def test_a_writer_that_sleeps_past_its_lease_is_refused(tmp_path):
    address = f"unix:{tmp_path / 'node'}"
    keys, rows = chain(4)
    with running(address, lease_s=0.2) as node:
        slow = client([address], BLOCK).links[0].lanes[0]
        lease = slow._ask(protocol.Begin(keys), protocol.Granted)
        until(lambda: node.stats().expired == 1)
        assert client([address], BLOCK).save(keys, rows) == 4
        next(slow._memory.read(lease.slots))[:] = 0  # it wakes and writes where it has no right to any more
        assert slow._ask(protocol.Finish(lease.lease, [0, 0, 0, 0]), protocol.Placed).count == 0
        out = empty(4)
        got = client([address], BLOCK).load(keys, out)
        assert all(np.array_equal(a, b) for a, b in zip(out[:got], rows, strict=False))


def test_replicas_outlive_a_node(tmp_path, record_property):
    addresses = [f"unix:{tmp_path / name}" for name in "abc"]
    chains = [chain(10, seed) for seed in range(12)]
    with node_process(addresses[0]) as first, node_process(addresses[1]), node_process(addresses[2]):
        pool = client(addresses, BLOCK, replicas=2)
        for keys, rows in chains:
            assert pool.save(keys, rows, keys[0]) == 20
        first.kill()
        first.wait()
        seconds = []
        for keys, rows in chains * 20:
            out, started = empty(10), time.perf_counter()
            assert pool.load(keys, out) == 10
            seconds.append(time.perf_counter() - started)
            assert all(np.array_equal(a, b) for a, b in zip(out, rows, strict=True))
    record_property("served", 1.0)
    record_property("first_ms", 1e3 * max(seconds[:12]))
    record_property("p99_ms", 1e3 * float(np.quantile(seconds, 0.99)))


def test_a_node_that_stands_still_counts_as_gone(tmp_path):
    addresses = [f"unix:{tmp_path / name}" for name in "ab"]
    keys, rows = chain(10)
    with node_process(addresses[0]) as first, node_process(addresses[1]) as second:
        pool = client(addresses, BLOCK, replicas=2, timeout=1.5)
        pool.save(keys, rows, keys[0])
        _stop(first)
        assert pool.load(keys, empty(10)) == 10
        _stop(second)
        assert pool.load(keys, empty(10)) == 0
        for process in (first, second):
            process.send_signal(signal.SIGCONT)
        until(lambda: pool.load(keys, empty(10)) == 10)


def test_settings_that_cannot_work_are_named(tmp_path):
    address, file = f"unix:{tmp_path / 'node'}", tmp_path / "blocks"
    with running(address, disk_path=file):
        with pytest.raises(InvalidConfig, match="4096 bytes, this model's 8192"):
            client([address], 8192).check()
        with pytest.raises(InvalidConfig, match="cannot listen"):
            Node(NodeConfig(listen=address, block_bytes=BLOCK))
    with pytest.raises(InvalidConfig, match="another size"):
        Node(NodeConfig(listen=address, block_bytes=4 * BLOCK, disk_path=file))
    file.write_bytes(b"not a file of blocks at all")
    with pytest.raises(InvalidConfig, match="no file of KV blocks"):
        Node(NodeConfig(listen=address, block_bytes=BLOCK, disk_path=file))
    for bad in ("", "tcp://", "tcp://host", "http://host:1", "unix:"):
        with pytest.raises(InvalidConfig, match="unix:/path or tcp"):
            client([bad], BLOCK)
    for wrong in ({"block_bytes": 0}, {"memory_bytes": 10}, {"lease_s": 0}, {"eviction": "fifo"}):
        with pytest.raises(InvalidConfig):
            NodeConfig(**{"listen": address, "block_bytes": BLOCK, **wrong})


def test_strangers_do_not_disturb_a_node(tmp_path):
    address = f"unix:{tmp_path / 'node'}"
    keys, rows = chain(3)
    with running(address):
        for raw in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\x7f", b"\x05\0\0\0hello", os.urandom(500)):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.settimeout(5)
                stranger.connect(address.removeprefix("unix:"))
                stranger.sendall(raw)
                stranger.shutdown(socket.SHUT_WR)
                with suppress(ConnectionResetError):
                    assert stranger.recv(10) == b""
        assert client([address], BLOCK).save(keys, rows) == 3


def test_a_connection_that_was_not_greeted_is_none():
    listener = socket.create_server(("127.0.0.1", 0))
    greetings = []

    def silent_at_first():
        first, _ = listener.accept()  # answers nothing
        second, _ = listener.accept()
        with first, second:
            for reply in (protocol.Welcome("node", 1, 1, 1, BLOCK), protocol.Count(0)):
                greetings.append(protocol.request_codec.decode(receive(second)))
                send(second, protocol.reply_codec.encode(reply))
            second.recv(1)

    thread = threading.Thread(target=silent_at_first, daemon=True)
    thread.start()
    with closing(NodeLink(f"tcp://127.0.0.1:{listener.getsockname()[1]}", BLOCK, timeout=0.2)) as link:
        with pytest.raises(TimeoutError):
            link.match([])
        assert link.match([]) == 0
    thread.join()
    listener.close()
    assert greetings == [protocol.Hello(BLOCK), protocol.Match([])]


def test_another_node_at_the_address_of_one_counts_as_failed(tmp_path):
    address, (keys, rows) = f"unix:{tmp_path / 'node'}", chain(3)
    pool = client([address], BLOCK)
    with running(address):
        assert pool.save(keys, rows) == 3
    with running(address, block_bytes=2 * BLOCK, memory_bytes=64 * BLOCK):
        until(lambda: not pool.links[0].resting)
        assert pool.load(keys, empty(3)) == 0  # the old connection broke
        until(lambda: not pool.links[0].resting)
        assert pool.load(keys, empty(3)) == 0  # the new node refuses these blocks
    assert pool.counts.failures == 2


def test_a_node_that_sends_more_than_was_asked_for_counts_as_failed():
    keys, out = chain(3)[0], empty(3)
    told = protocol.Blocks([xxhash.xxh3_64_intdigest(bytes(BLOCK))] * 5)
    listener = socket.create_server(("127.0.0.1", 0))

    def mad():
        connection, _ = listener.accept()
        with connection:
            for reply, blocks in ((protocol.Welcome("mad", 1, 1, 1, BLOCK), []), (told, [bytes(BLOCK)] * 5)):
                assert receive(connection)
                send(connection, protocol.reply_codec.encode(reply), blocks)
            with suppress(ConnectionResetError):
                connection.recv(1)

    thread = threading.Thread(target=mad)
    thread.start()
    pool = client([f"tcp://127.0.0.1:{listener.getsockname()[1]}"], BLOCK)
    assert pool.load(keys, out) == 0
    assert pool.counts.failures == 1
    thread.join()
    listener.close()


# -- tools ---------------------------------------------------------------------------------------------


def _stop(process):
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)  # until every thread of it has stopped


@contextmanager
def node_process(address, file=None):
    command = [sys.executable, "-m", "statepool.kv.pool.commands", "serve", "--listen", address]
    command += ["--block-bytes", str(BLOCK), "--memory-bytes", "4MiB", *(["--disk-path", str(file)] if file else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline().startswith(b"pool node")
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        process.stdout.close()


def flipping_proxy(address, every):
    """A relay that flips a bit of the answers now and then."""

    def ways():
        passed = 0

        def flip(data):
            nonlocal passed
            changed = bytearray(data)
            for at in range(every - passed % every, len(changed), every):
                changed[at] ^= 0x10
            passed += len(changed)
            return changed

        return bytes, flip

    return relayed(address, ways)


def test_a_slow_link_is_slow_and_not_gone():
    """What is sent takes several times as long to leave as silence is borne."""
    with running("tcp://127.0.0.1:0", memory_bytes=512 * BLOCK) as node:
        command = [sys.executable, "-m", "bench.paced", "tcp://127.0.0.1:0", node.address, str(1 << 20)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as link:
            try:
                pool = client([link.stdout.readline().split()[1]], BLOCK, timeout=0.4)
                keys, rows = chain(512, 5)
                assert pool.save(keys, rows) == 512
                assert pool.counts.failures == 0
            finally:
                link.terminate()


@pytest.mark.parametrize("connections", [2, 3, 7])
@pytest.mark.parametrize("hole", [None, 0, 5, 19, 39])
def test_several_connections_bring_what_one_does(address, connections, hole):
    """Leading blocks only, whichever part a missing or a damaged one lies in."""
    keys, rows = chain(40)
    with running(address) as node:
        pool = client([address], BLOCK, connections=connections)
        assert pool.save(keys, rows) == 40
        if hole is not None:
            lease = node._table.read(1, [keys[hole]], time.monotonic())
            node._bytes(lease.slots[0])[7] ^= 1
            node._table.release(lease.id)
        out, right = empty(40), 40 if hole is None else hole
        assert pool.load(keys, out) == right
        assert all(np.array_equal(out[i], rows[i]) for i in range(right))
        assert pool.counts.corrupt == (hole is not None)
        assert pool.load(keys, out) == right, "the damaged one is dropped"
        assert pool.counts.corrupt == (hole is not None)


def test_no_part_is_still_written_when_a_node_is_gone():
    address = f"tcp://127.0.0.1:{free_port()}"
    keys, rows = chain(40)
    with node_process(address) as process:
        pool = client([address], BLOCK, connections=4, timeout=0.3)
        assert pool.save(keys, rows) == 40
        process.send_signal(signal.SIGSTOP)
        assert pool.load(keys, empty(40)) == 0
        assert pool.counts.failures == 1
        process.send_signal(signal.SIGCONT)
        time.sleep(0.6)
        assert pool.load(keys, empty(40)) == 40
