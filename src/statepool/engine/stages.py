"""One model over several processes, each with a share of the layers: a prompt's chunks follow each other through them.

While a later stage computes a chunk, an earlier one has begun the next (chunked pipeline parallelism, Mooncake, 5.1).
The first stage is the engine itself. All stages write into one array of KV blocks in shared memory, each its own
layers, so nothing has to be brought together. A token's bits do not depend on where a layer runs.
"""

from __future__ import annotations

import logging
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from statepool import native
from statepool.core import sockets
from statepool.core.errors import InvalidConfig, Unavailable
from statepool.core.wire import Codec
from statepool.engine.batch import Batch
from statepool.engine.config import Quant
from statepool.engine.loader import Checkpoint
from statepool.engine.models import parse_config
from statepool.engine.models.decoder import DecoderConfig
from statepool.engine.runner import F32, DecoderRunner
from statepool.kv import KVLayout

__all__ = ["StagedRunner", "shares"]

log = logging.getLogger(__name__)

_AHEAD = 4
"""Chunks that may wait in front of a stage."""


class _Start(msgspec.Struct, frozen=True, tag=True):
    """What a stage is to be."""

    path: str
    quant: Quant
    native: bool
    threads: int | None
    blocks: int
    layout: KVLayout
    max_len: int
    first: int
    end: int


class _Step(msgspec.Struct, frozen=True, tag=True):
    """A batch; the hidden states of its rows follow, float32 ``[T][hidden]``. With ``read`` they are wanted back."""

    number: int
    read: bool
    batch: dict[str, Any]


class _Weights(msgspec.Struct, frozen=True, tag=True):
    """Tensors that have changed, those of one stage."""

    tensors: dict[str, Any]


class _Done(msgspec.Struct, frozen=True, tag=True):
    """A step has passed the last stage; its hidden states follow if they are wanted. 0 is the start."""

    number: int
    rows: int = 0


_words: Codec[_Start | _Step | _Weights | _Done] = Codec(_Start | _Step | _Weights | _Done)


def shares(layers: int, stages: int) -> list[range]:
    """The layers of each stage, as even as can be, earlier ones larger.

    Raises:
        InvalidConfig: there are more stages than layers.
    """
    if not 1 <= stages <= layers:
        raise InvalidConfig(f"stages must be from 1 to the model's {layers} layers, got {stages}", param="stages")
    borders = [-(-layers * i // stages) for i in range(stages + 1)]
    return [range(first, end) for first, end in pairwise(borders)]


class StagedRunner(DecoderRunner):
    """A ``Runner`` whose later layers are in other processes. See ``DecoderRunner`` for what is not described here.

    Args:
        layout: of the KV blocks.
        blocks: how many.
        stages: processes, this one included.
        threads: of each; None takes all cores.

    Raises:
        InvalidConfig: more stages than layers. Unavailable: a stage does not start, or has ended.
    """

    def __init__(
        self,
        ops: Any,
        decoder: DecoderConfig,
        checkpoint: Checkpoint,
        quant: Quant,
        layout: KVLayout,
        blocks: int,
        max_len: int,
        stages: int,
        threads: int | None,
    ) -> None:
        mine, *others = shares(decoder.layers, stages)
        memory = os.memfd_create("statepool-stages", os.MFD_CLOEXEC)
        os.ftruncate(memory, max(blocks * layout.block_bytes, mmap.PAGESIZE))
        super().__init__(ops, decoder, checkpoint, quant, layout.map(memory, blocks), max_len, mine)
        self._others = others
        self._number = 0
        self._passed = 0
        self._answers: list[F32] = []
        before, self._first = socket.socketpair()
        self._processes = []
        for share in others:
            after, behind = socket.socketpair()
            start = _Start(
                str(checkpoint.path),
                quant,
                ops is native.kernels,
                threads,
                blocks,
                layout,
                max_len,
                share.start,
                share.stop,
            )
            descriptors = (memory, before.fileno(), after.fileno())
            command = [sys.executable, "-m", "statepool.engine.stages", *map(str, descriptors)]
            self._processes.append(subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.PIPE))
            stdin = self._processes[-1].stdin
            assert stdin is not None
            stdin.write(_words.encode(start))
            stdin.close()
            before.close()
            after.close()
            before = behind
        self._last = before
        os.close(memory)
        weakref.finalize(self, _end, self._first, self._last, self._processes)
        for _ in others:
            self._receive()

    @property
    def busy(self) -> bool:
        """See ``Runner.busy``."""
        return self._passed < self._number

    def forward(self, batch: Batch) -> F32:
        """See ``Runner.forward``. Without ``batch.read`` it returns when the first stage is done, with nothing."""
        x = super().forward(batch)
        self._number += 1
        step = _Step(self._number, batch.read, batch.arrays)
        self._send(_words.encode(step), [x])
        if not batch.read:
            return x[:0]
        self._settle()
        return self._answers.pop()

    def load(self, changed: set[str] | None = None) -> None:
        """See ``Runner.load``."""
        super().load(changed)
        if changed is not None:
            self._settle()
            tensors = {
                name: self._checkpoint.tensor(name)
                for name in changed
                if any(name.startswith(f"model.layers.{i}.") for share in self._others for i in share)
            }
            self._send(_words.encode(_Weights(tensors)))

    # -- blocks: nobody touches them while a stage may still write --------------------------------

    def read_blocks(self, blocks: list[int]) -> npt.NDArray[Any]:
        """See ``Runner.read_blocks``."""
        self._settle()
        return super().read_blocks(blocks)

    def write_blocks(self, blocks: list[int], data: npt.NDArray[Any]) -> None:
        """See ``Runner.write_blocks``."""
        self._settle()
        super().write_blocks(blocks, data)

    def copy_block(self, source: int, target: int) -> None:
        """See ``Runner.copy_block``."""
        self._settle()
        super().copy_block(source, target)

    def rows(self, blocks: list[int]) -> list[npt.NDArray[Any]]:
        """See ``Runner.rows``."""
        self._settle()
        return super().rows(blocks)

    # -- small parts -------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Wait until every step has passed the last stage."""
        while self.busy:
            self._receive()

    def _receive(self) -> None:
        try:
            body = sockets.receive(self._last)
            if body is None:
                raise ConnectionResetError("a stage has ended")
            done = _words.decode(body)
            assert isinstance(done, _Done)
            if done.rows:
                answer = np.empty((done.rows, self.decoder.hidden_size), np.float32)
                sockets.receive_into(self._last, answer.data.cast("B"))
                self._answers.append(answer)
        except OSError as error:
            raise Unavailable(f"a stage of the model does not answer: {error}") from error
        self._passed = max(self._passed, done.number)

    def _send(self, body: bytes, arrays: list[F32] | None = None) -> None:
        try:
            sockets.send(self._first, body, arrays or ())
        except OSError as error:
            raise Unavailable(f"a stage of the model does not answer: {error}") from error


def _end(first: socket.socket, last: socket.socket, processes: list[subprocess.Popen[bytes]]) -> None:
    """The other stages end when nobody is connected to them."""
    first.close()
    last.close()
    for process in processes:
        process.wait()


class _Stage(DecoderRunner):
    """The layers of one later stage."""

    def __init__(self, ops: Any, decoder: DecoderConfig, start: _Start, storage: npt.NDArray[Any]) -> None:
        span = range(start.first, start.end)
        super().__init__(ops, decoder, Checkpoint(Path(start.path)), start.quant, storage, start.max_len, span)

    def take(self, tensors: dict[str, Any]) -> None:
        """Use other weights from now on."""
        mine = {name for name in tensors if any(name.startswith(f"model.layers.{i}.") for i in self._span)}
        for name in mine:
            self._checkpoint.replace(name, tensors[name])
        if mine:
            self.load(mine)


def _serve(stage: _Stage, before: socket.socket, after: socket.socket, last: bool) -> None:
    """Pass steps through until the engine goes away; the next ones arrive while one is computed."""
    arrived: queue.Queue[tuple[Any, F32 | None] | None] = queue.Queue(_AHEAD)

    def listen() -> None:
        with suppress(OSError):
            while (body := sockets.receive(before)) is not None:
                word, x = _words.decode(body), None
                if isinstance(word, _Step):
                    x = np.empty((len(word.batch["tokens"]), stage.decoder.hidden_size), np.float32)
                    sockets.receive_into(before, x.data.cast("B"))
                arrived.put((word, x))
        arrived.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while (entry := arrived.get()) is not None:
        word, x = entry
        body, rest = _words.encode(word), list[F32]()
        if isinstance(word, _Weights):
            stage.take(word.tensors)
        elif x is not None:
            stage.layers(x, Batch(**word.batch))
            rest = [x]
            if last:
                body, rest = _words.encode(_Done(word.number, len(x) * word.read)), rest if word.read else []
        if not (last and isinstance(word, _Weights)):
            sockets.send(after, body, rest)


def _ops(start: _Start) -> Any:
    if not start.native:
        from statepool.engine import ops

        return ops
    assert native.kernels is not None, "the engine has them"
    if start.threads is not None:
        native.kernels.set_threads(start.threads)
    return native.kernels


def main(memory: int, before: int, after: int) -> int:
    """One stage: its blocks are the memory behind a descriptor; steps come by one socket and leave by the other."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends with the engine
    start = _words.decode(sys.stdin.buffer.read())
    assert isinstance(start, _Start)
    ops = _ops(start)
    source, target = socket.socket(fileno=before), socket.socket(fileno=after)
    decoder = parse_config(Checkpoint(Path(start.path)).config)
    stage = _Stage(ops, decoder, start, start.layout.map(memory, start.blocks))
    with suppress(BrokenPipeError, ConnectionResetError):
        sockets.send(target, _words.encode(_Done(0)))
        _serve(stage, source, target, start.end == decoder.layers)
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
