"""The engine: submit requests, call ``step()`` until there is no work, read the outputs.

A request's tokens and log-probabilities depend on the request and the model only: not on its neighbours in
the batch, on how its prompt was cut, on what was cached, drafted, preempted or moved.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Iterable, Sequence as Tokens
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.core.errors import ContextLengthExceeded, InvalidConfig, InvalidRequest, NotFound, Overloaded
from statepool.engine import transfer
from statepool.engine.batch import Batch
from statepool.engine.config import EngineConfig, EngineStats, ModelInfo
from statepool.engine.hub import resolve
from statepool.engine.loader import Checkpoint
from statepool.engine.models import parse_config
from statepool.engine.request import Output, Request, SamplingParams
from statepool.engine.runner import HEAD_ROWS, NativeRunner, Runner
from statepool.engine.sampler import Sampler, token_logprob
from statepool.engine.scheduler import Plan, SequenceView, Snapshot, schedule
from statepool.engine.sequence import Sequence
from statepool.engine.session import SessionStore
from statepool.engine.speculate import NgramDrafter
from statepool.engine.text.detokenize import Detokenizer
from statepool.engine.text.stop import StopMatcher
from statepool.engine.text.tokenizer import Tokenizer
from statepool.kv import BlockPool, BlockTable, KVLayout, block_keys, root_key
from statepool.kv.layout import BLOCK_SIZE
from statepool.native import kernels, reason

F32 = npt.NDArray[np.float32]
_log = logging.getLogger(__name__)


class Engine:
    """One model and its KV pool. Not thread-safe: one thread calls everything.

    Raises:
        InvalidConfig: a setting that this machine or model cannot honour.
        InvalidCheckpoint: the model files are missing or wrong.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        path = resolve(config.model)
        self._checkpoint = Checkpoint(path)
        decoder = parse_config(self._checkpoint.config)
        parameters = decoder.validate(self._checkpoint)
        self.tokenizer = Tokenizer.load(path)
        layout = KVLayout(
            decoder.layers, decoder.kv_heads, decoder.head_dim, "fp32" if config.quant == "fp32" else "bf16"
        )
        blocks = config.kv_bytes // layout.block_bytes
        max_len = _max_len(config, decoder.max_position, blocks, layout)
        self._layout = layout
        self.runner, backend = _runner(config, decoder, self._checkpoint, layout, blocks, max_len)
        self.pool = BlockPool(blocks)
        self.sessions = SessionStore(self.pool, self.runner)
        self.info = ModelInfo(
            id=config.served_name or ("statepool-tiny" if config.model == "tiny" else path.name),
            path=str(path),
            family=decoder.family,
            fingerprint=self._checkpoint.fingerprint(),
            quant=config.quant,
            backend=backend,
            max_model_len=max_len,
            vocab_size=decoder.vocab_size,
            hidden_size=decoder.hidden_size,
            layers=decoder.layers,
            parameters=parameters,
            eos_ids=tuple(dict.fromkeys((*self.tokenizer.eos_ids, *decoder.eos_ids))),
            kv_token_bytes=layout.token_bytes,
        )
        self.version = "0"
        self.paused = False
        self._grammars: Any = None
        self._running: dict[str, Sequence] = {}
        self._waiting: dict[str, Sequence] = {}
        self._backlog: deque[Output] = deque()
        self._arrivals = 0
        self._count: dict[str, int] = dict.fromkeys(_COUNTERS, 0)

    # -- requests ----------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: empty prompt, unknown token id, duplicate id, impossible grammar.
            ContextLengthExceeded: the prompt leaves no room for a token.
            Overloaded: the queue is full.
        """
        self._waiting[request.id] = self._sequence(request)

    def abort(self, request_id: str) -> bool:
        """Drop a request before the next step; its blocks are free at once. False if it is not there."""
        sequence = self._running.pop(request_id, None) or self._waiting.pop(request_id, None)
        if sequence is None:
            return False
        self._release(sequence)
        self._count["aborted"] += 1
        return True

    @property
    def has_work(self) -> bool:
        """Whether ``step`` would do or return something."""
        return bool(self._backlog) or (not self.paused and bool(self._running or self._waiting))

    def step(self) -> list[Output]:
        """Run one batch; returns what each of its sequences gained. Empty if there is nothing to do."""
        outputs = list(self._backlog)
        self._backlog.clear()
        if self.paused or not (self._running or self._waiting):
            return outputs
        plan = self._plan()
        for request_id in plan.preempt:
            self._preempt(self._running[request_id])
        for request_id in plan.admit:
            self._admit(self._waiting[request_id])
        return outputs + self._execute([(self._running[name], tokens) for name, tokens in plan.work])

    def generate(self, requests: Iterable[Request]) -> dict[str, list[Output]]:
        """Run requests to their end; outputs by request id. Other requests keep running beside them."""
        mine: dict[str, list[Output]] = {}
        for request in requests:
            self.submit(request)
            mine[request.id] = []
        foreign: list[Output] = []
        open_ids = set(mine)
        while open_ids:
            if self.paused:
                raise InvalidRequest("the engine is paused; call resume() first")
            for output in self.step():
                if output.id in mine:
                    mine[output.id].append(output)
                    if output.finish_reason is not None:
                        open_ids.discard(output.id)
                else:
                    foreign.append(output)
        self._backlog.extend(foreign)
        return mine

    def score(self, tokens: Tokens[int]) -> F32:
        """Log-probabilities float32 ``[len - 1]`` of ``tokens[1:]``: the bits generation would report."""
        request = Request(
            f"score-{secrets.token_hex(8)}", tuple(tokens), SamplingParams(max_tokens=0, prompt_logprobs=0)
        )
        (output,) = self.generate([request])[request.id]
        assert output.prompt_logprobs is not None
        return np.array([entry.logprob for entry in output.prompt_logprobs[1:] if entry], np.float32)

    def embed(self, tokens: Tokens[int]) -> F32:
        """Mean of the final hidden states, float32 ``[hidden]``, L2-normalised."""
        request = Request(f"embed-{secrets.token_hex(8)}", tuple(tokens), SamplingParams(max_tokens=0))
        sequence = self._sequence(request)
        sequence.embedding = np.zeros(self.info.hidden_size)
        self._waiting[request.id] = sequence
        while sequence.finish is None:
            self._backlog.extend(output for output in self.step() if output.id != request.id)
        mean = sequence.embedding / len(tokens)
        return (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)

    # -- state that moves --------------------------------------------------------------------------

    def export_state(self, request_id: str) -> bytes:
        """Take a request out of this engine as bytes: its tokens, its noise key and its KV.

        Raises:
            NotFound: no such request here.
        """
        sequence = self._running.get(request_id) or self._waiting.get(request_id)
        if sequence is None:
            raise NotFound(f"request {request_id!r} is not in the engine", param="request_id")
        used = sequence.table.blocks[: -(-sequence.computed // BLOCK_SIZE)]
        data = transfer.pack(self._identity(), sequence, self.runner.read_blocks(used))
        self._running.pop(request_id, None)
        self._waiting.pop(request_id, None)
        self._release(sequence)
        return data

    def import_state(self, data: bytes) -> str:
        """Continue a request that another engine exported; returns its id.

        If the pool is too full for its KV it is computed again, with the same bits.

        Raises:
            Corruption: the bytes are damaged. InvalidRequest: they belong to another model or weights.
        """
        state = transfer.unpack(data, self._identity())
        sequence = self._sequence(state.request, seed=state.seed)
        transfer.replay(sequence, state)
        needed = len(state.blocks)
        if needed and needed <= self.pool.free:
            blocks = self.pool.take(needed)
            self.runner.write_blocks(blocks, state.blocks)
            sequence.table.blocks, sequence.computed = blocks, state.computed
        self._waiting[state.request.id] = sequence
        return state.request.id

    def update_weights(self, tensors: Iterable[tuple[str, npt.NDArray[Any]]], version: str) -> None:
        """Swap tensors (Hugging Face names; float32, or bf16 as uint16) between two steps.

        Cached blocks and sessions belong to the old weights and are dropped; running requests go on
        with the KV they have, and none of it is shared afterwards.

        Raises:
            InvalidCheckpoint: unknown name or wrong shape; nothing was changed.
        """
        updates = dict(tensors)
        for name, value in updates.items():
            self._checkpoint.check(name, value)
        for name, value in updates.items():
            self._checkpoint.replace(name, value)
        self.runner.load(set(updates))
        self.version = version
        self.reset_prefix_cache()
        self.sessions.clear()
        for sequence in self._running.values():
            sequence.stale = True
        for sequence in self._waiting.values():
            self._release(sequence)
            sequence.root, sequence.keys = self._root(sequence.request.salt), []

    def reset_prefix_cache(self) -> None:
        """Forget every cached block; held ones stay with their requests."""
        self.pool.clear()

    def pause(self) -> None:
        """Make ``step`` do nothing until ``resume``; requests keep their place and KV."""
        self.paused = True

    def resume(self) -> None:
        """Undo ``pause``."""
        self.paused = False

    def stats(self) -> EngineStats:
        """Counters and gauges of now."""
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_blocks_total=self.pool.total,
            kv_blocks_free=self.pool.free,
            kv_blocks_cached=self.pool.cached,
            sessions=len(self.sessions),
            session_bytes_parked=self.sessions.parked_bytes,
            paused=self.paused,
            weight_version=self.version,
            **self._count,
        )

    # -- one step ----------------------------------------------------------------------------------

    def _plan(self) -> Plan:
        while True:
            plan = schedule(self._snapshot())
            # Idle sessions leave the pool before any running request does.
            if plan.starved and self.sessions.park_oldest():
                continue
            idle = [s for s in self._waiting.values() if s.table.blocks]
            if plan.work or not idle:
                return plan
            self._release(idle[-1])  # imported KV that stands in everybody's way is computed again later

    def _snapshot(self) -> Snapshot:
        running = []
        pending: set[bytes] = set()
        for sequence in self._running.values():
            self._draft(sequence)
            table = sequence.table
            if sequence.computed < len(sequence.tokens) - 1 and not sequence.stale:
                pending.update(self._keys(sequence)[sequence.computed // BLOCK_SIZE :])
            freeable = sum(self.pool.references(block) == 1 for block in table.blocks)
            running.append(
                SequenceView(
                    sequence.request.id, sequence.request.priority, sequence.arrival,
                    sequence.total, sequence.computed, len(table.blocks), freeable,
                )
            )  # fmt: skip
        waiting = []
        seats = self.config.max_seqs - len(self._running)
        for sequence in sorted(self._waiting.values(), key=lambda s: (s.request.priority, s.arrival)):
            if seats <= 0:
                break
            view = self._waiting_view(sequence, pending)
            waiting.append(view)
            seats -= not view.blocked
        return Snapshot(running, waiting, self.pool.free, self.config.max_batched_tokens, self.config.max_seqs)

    def _waiting_view(self, sequence: Sequence, pending: set[bytes]) -> SequenceView:
        request, most = sequence.request, len(sequence.tokens) - 1
        tokens = blocks = free = 0
        blocked = False
        session = None
        if sequence.table.blocks:  # imported with its KV
            tokens, blocks = sequence.computed, len(sequence.table.blocks)
        elif not sequence.scoring:
            if request.session is not None:
                session = self.sessions.peek(request.salt, request.session, sequence.tokens, sequence.root)
            if session is not None:
                tokens, blocks, free = session
            else:
                keys = self._keys(sequence)
                found = self.pool.match(keys, sequence.tokens)
                tokens, blocks = len(found) * BLOCK_SIZE, len(found)
                free = sum(self.pool.references(block) == 0 for block in found)
                blocked = len(found) < len(keys) and keys[len(found)] in pending
                pending.update(keys[len(found) :])
        return SequenceView(
            request.id, request.priority, sequence.arrival, sequence.total,
            hit_tokens=min(tokens, most), hit_blocks=blocks, hit_free=free, blocked=blocked,
        )  # fmt: skip

    def _admit(self, sequence: Sequence) -> None:
        request = sequence.request
        del self._waiting[request.id]
        self._running[request.id] = sequence
        sequence.running = True
        if sequence.table.blocks or sequence.scoring:
            return
        blocks: list[int] = []
        found = 0
        if request.session is not None:
            blocks, found = self.sessions.claim(request.salt, request.session, sequence.tokens, sequence.root)
        if not blocks:
            blocks = self.pool.match(self._keys(sequence), sequence.tokens)
            self.pool.hold(blocks)
            found = len(blocks) * BLOCK_SIZE
        # The last token is always computed: its logits are wanted. Its KV is rewritten with the same bits.
        sequence.computed = min(found, len(sequence.tokens) - 1)
        sequence.table = BlockTable(blocks)
        if not sequence.admitted:
            sequence.cached_tokens = sequence.computed
            self._count["prefix_query_tokens"] += sequence.prompt_len
            self._count["prefix_hit_tokens"] += sequence.computed
        sequence.admitted = True

    def _preempt(self, sequence: Sequence) -> None:
        del self._running[sequence.request.id]
        self._release(sequence)
        sequence.running = False
        sequence.drafts = []
        if sequence.stale:
            sequence.stale, sequence.keys, sequence.root = False, [], self._root(sequence.request.salt)
        if sequence.scoring:
            sequence.prompt_logprobs = [None]
        if sequence.embedding is not None:
            sequence.embedding[:] = 0
        self._waiting[sequence.request.id] = sequence
        self._count["preemptions"] += 1

    def _draft(self, sequence: Sequence) -> None:
        sequence.drafts = []
        if sequence.drafter is not None and sequence.computed == len(sequence.tokens) - 1:
            room = sequence.limit - len(sequence.tokens) - 1
            sequence.drafts = sequence.drafter.draft(sequence.tokens)[: max(room, 0)]

    def _execute(self, work: list[tuple[Sequence, int]]) -> list[Output]:
        parts = []
        for sequence, count in work:
            end = sequence.computed + count
            sequence.table.blocks += self.pool.take(sequence.table.missing(end))
            sequence.drafts = sequence.drafts[: max(end - len(sequence.tokens), 0)]
            ids = (sequence.tokens + sequence.drafts)[sequence.computed : end]
            parts.append((ids, sequence.computed, sequence.table.blocks))
            again = min(end, sequence.furthest) - sequence.computed
            self._count["recomputed_tokens"] += max(again, 0)
            sequence.furthest = max(sequence.furthest, end)
        batch = Batch.build(parts)
        hidden = self.runner.forward(batch)
        self._count["steps"] += 1
        self._count["forward_tokens"] += int(batch.tokens.size)
        rows: list[tuple[int, Sequence, int]] = []
        for (sequence, count), start in zip(work, batch.query_start.tolist(), strict=False):
            first = max(sequence.first_row(), sequence.computed)
            last = sequence.computed + count
            if sequence.embedding is not None:
                for row in self.runner.normed(hidden[start : start + count]):
                    sequence.embedding += row
                continue
            if sequence.limit == sequence.prompt_len:  # max_tokens = 0: nothing follows the last token
                last = min(last, sequence.prompt_len - 1)
            rows += [(start + p - sequence.computed, sequence, p) for p in range(first, last)]
        for at in range(0, len(rows), HEAD_ROWS):
            group = rows[at : at + HEAD_ROWS]
            logits = self.runner.logits(hidden[[row for row, _, _ in group]])
            for line, (_, sequence, position) in zip(logits, group, strict=True):
                self._read(sequence, position, line)
        return [output for sequence, count in work if (output := self._advance(sequence, count)) is not None]

    def _read(self, sequence: Sequence, position: int, logits: F32) -> None:
        """Use the logits at ``position``: score the prompt's next token, or choose the output's."""
        if position < sequence.prompt_len - 1:
            k = sequence.request.params.prompt_logprobs or 0
            if len(sequence.prompt_logprobs) == position + 1:
                sequence.prompt_logprobs.append(token_logprob(logits, sequence.tokens[position + 1], k))
            return
        if sequence.finish is not None or position != len(sequence.tokens) - 1:
            return
        if sequence.fresh and sequence.drafts[sequence.fresh - 1] != sequence.tokens[-1]:
            return  # this row was computed behind a draft that did not hold
        sampled = sequence.sampler.sample(logits, position + 1, sequence.generated, sequence.mask())
        sequence.fresh += 1
        sequence.append(sampled)

    def _advance(self, sequence: Sequence, count: int) -> Output | None:
        """Book a step: how far the KV is valid now, what became shareable, whether it is over."""
        if sequence.drafts:
            held = max(sequence.fresh - 1, 0)
            sequence.draft_tokens += len(sequence.drafts)
            sequence.accepted_tokens += held
            self._count["draft_tokens"] += len(sequence.drafts)
            self._count["accepted_tokens"] += held
            assert sequence.drafter is not None
            sequence.drafter.observe(len(sequence.drafts), held, len(sequence.tokens))
        end = sequence.computed + count
        sequence.computed = min(end, len(sequence.tokens) - 1) if sequence.fresh else min(end, len(sequence.tokens))
        self._count["generated_tokens"] += sequence.fresh
        sequence.drafts, sequence.fresh = [], 0
        self._publish(sequence)
        if sequence.finish is None and sequence.limit == sequence.prompt_len == sequence.computed:
            sequence.finish = "length"
        output = sequence.output()
        if sequence.finish is not None:
            self._count["prompt_tokens"] += sequence.prompt_len
            del self._running[sequence.request.id]
            name = sequence.request.session
            if name is not None and not sequence.stale:
                kept = sequence.tokens[: sequence.computed]
                self.sessions.keep(sequence.request.salt, name, kept, sequence.root, sequence.table.blocks)
            else:
                self._release(sequence)
        return output

    def _publish(self, sequence: Sequence) -> None:
        if sequence.stale:
            return
        table, full = sequence.table, sequence.computed // BLOCK_SIZE
        if table.published < full:
            keys = self._keys(sequence)
            for i in range(table.published, full):
                self.pool.publish(table.blocks[i], keys[i], sequence.tokens[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE])
            table.published = full

    # -- small parts -------------------------------------------------------------------------------

    def _sequence(self, request: Request, seed: int | None = None) -> Sequence:
        params = request.params
        if request.id in self._running or request.id in self._waiting:
            raise InvalidRequest(f"request id {request.id!r} is already in the engine", param="id")
        if len(self._waiting) >= self.config.max_waiting:
            raise Overloaded(f"{len(self._waiting)} requests are waiting; retry later")
        self._check_prompt(request)
        limit = min(len(request.prompt) + params.max_tokens, self.info.max_model_len)
        grammar = None
        if params.grammar is not None:
            if self._grammars is None:
                from statepool.engine.text.grammar import GrammarCompiler

                self._grammars = GrammarCompiler(self.tokenizer)
            self._grammars.check(params.grammar, limit - len(request.prompt))
            grammar = self._grammars.compile(params.grammar)
        chosen = seed if seed is not None else params.seed
        self._arrivals += 1
        sequence = Sequence(
            request=request,
            arrival=self._arrivals,
            root=self._root(request.salt),
            limit=limit,
            sampler=Sampler(
                params,
                secrets.randbits(63) if chosen is None else chosen,
                request.index,
                self.info.eos_ids,
                self.tokenizer.vocab_size,
            ),
            detokenizer=Detokenizer(self.tokenizer),
            stop=StopMatcher(params.stop, params.include_stop),
            eos=frozenset(self.info.eos_ids),
            grammar=grammar,
            drafter=NgramDrafter(self.config.max_draft) if self.config.speculate == "ngram" else None,
            tokens=list(request.prompt),
        )
        sequence.sampler.begin(request.prompt)
        return sequence

    def _check_prompt(self, request: Request) -> None:
        prompt, vocab = request.prompt, self.info.vocab_size
        if not prompt:
            raise InvalidRequest("the prompt is empty; it needs at least one token", param="prompt")
        if min(prompt) < 0 or max(prompt) >= vocab:
            raise InvalidRequest(f"prompt holds a token id outside 0..{vocab - 1}", param="prompt")
        room = self.info.max_model_len - (request.params.max_tokens > 0)
        if len(prompt) > room:
            raise ContextLengthExceeded(
                f"the prompt has {len(prompt)} tokens; this model holds {self.info.max_model_len} including the answer",
                param="prompt",
            )
        for token in (*request.params.logit_bias, *request.params.stop_token_ids):
            if not 0 <= token < vocab:
                raise InvalidRequest(f"token id {token} is outside 0..{vocab - 1}", param="logit_bias")

    def _keys(self, sequence: Sequence) -> list[bytes]:
        sequence.keys = block_keys(sequence.tokens, BLOCK_SIZE, sequence.root, sequence.keys)
        return sequence.keys

    def _identity(self) -> str:
        return f"{self.info.fingerprint}/{self.info.quant}/{self.version}/{self._layout.name}"

    def _root(self, salt: str) -> bytes:
        return root_key(self._identity(), salt)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.table.blocks)
        sequence.table = BlockTable()
        sequence.computed = 0


_COUNTERS = (
    "steps", "forward_tokens", "prompt_tokens", "generated_tokens", "prefix_query_tokens", "prefix_hit_tokens",
    "preemptions", "recomputed_tokens", "draft_tokens", "accepted_tokens", "aborted",
)  # fmt: skip


def _max_len(config: EngineConfig, model: int, blocks: int, layout: KVLayout) -> int:
    if config.max_model_len is not None and config.max_model_len > model:
        raise InvalidConfig(
            f"max_model_len {config.max_model_len} exceeds the model's {model} positions", param="max_model_len"
        )
    wanted = config.max_model_len or model
    if blocks < 1:
        raise InvalidConfig(
            f"kv_bytes {config.kv_bytes} holds no block; one takes {layout.block_bytes}", param="kv_bytes"
        )
    if blocks * BLOCK_SIZE < wanted:
        _log.warning("kv_bytes holds %d tokens, so max_model_len is that and not %d", blocks * BLOCK_SIZE, wanted)
    return min(wanted, blocks * BLOCK_SIZE)


def _runner(
    config: EngineConfig, decoder: Any, checkpoint: Checkpoint, layout: KVLayout, blocks: int, max_len: int
) -> tuple[Runner, str]:
    if config.backend == "torch" or (config.backend == "auto" and kernels is None):
        from statepool.engine.torch_runner import TorchRunner

        return TorchRunner(decoder, checkpoint, config.quant, layout, blocks, max_len), "torch"
    if kernels is None:
        raise InvalidConfig(f"backend 'native' is not available: {reason}", param="backend")
    if config.threads is not None:
        kernels.set_threads(config.threads)
    return NativeRunner(decoder, checkpoint, config.quant, layout.allocate(blocks), max_len), "native"
