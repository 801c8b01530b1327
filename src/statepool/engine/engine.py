"""The engine: submit requests, call ``step()`` until there is no work, read the outputs.

A request's tokens and log-probabilities depend on the request and the model only: not on its neighbours in
the batch, on how its prompt was cut, on what was cached, drafted, preempted or moved.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Tokens
from typing import Any

import numpy as np
import numpy.typing as npt

from statepool.core.errors import ContextLengthExceeded, InvalidConfig, InvalidRequest, NotFound, Overloaded
from statepool.engine import cuda, transfer
from statepool.engine.attention.spec import AttentionSpec
from statepool.engine.batch import Context
from statepool.engine.config import EngineConfig, EngineStats, ModelInfo
from statepool.engine.draft import SparseDrafter
from statepool.engine.hub import resolve
from statepool.engine.loader import Checkpoint
from statepool.engine.loop import BatchDrafter, StepLoop
from statepool.engine.models import parse_config
from statepool.engine.models.decoder import DecoderConfig
from statepool.engine.request import Output, Request, SamplingParams
from statepool.engine.runner import DecoderRunner, Runner
from statepool.engine.sampler import Sampler
from statepool.engine.sequence import Sequence
from statepool.engine.session import SessionStore
from statepool.engine.shared import SharedBlocks
from statepool.engine.speculate import NgramDrafter
from statepool.engine.text.detokenize import Detokenizer
from statepool.engine.text.stop import StopMatcher
from statepool.engine.text.tokenizer import Tokenizer
from statepool.engine.tiered import tiered_runner
from statepool.kv import BlockPool, KVLayout, TierFailure, root_key
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
        layout = _layout(config, decoder)
        blocks = config.kv_bytes // layout.block_bytes
        max_len = _max_len(config, decoder.max_position, blocks, layout)
        self._layout = layout
        self._attention = AttentionSpec.parse(config.attention)
        self.runner: Runner
        self.pool = BlockPool(blocks)
        if config.attention_workers is not None:
            from statepool.engine.attention.remote.offload import remote_runner

            remote, self.pool = remote_runner(config, decoder, self._checkpoint, layout, blocks, max_len)
            self.runner, backend = remote, remote.backend
        elif config.kv_budget is not None and config.kv_budget < blocks * layout.block_bytes:
            self.runner, backend = tiered_runner(config, decoder, self._checkpoint, layout, blocks, max_len)
        else:
            self.runner, backend = _runner(config, decoder, self._checkpoint, layout, blocks, max_len)
            spare = config.wave_bytes or config.kv_bytes
            if chosen := self._attention.backends(self.runner, backend, spare, trace=config.trace_selection):
                assert isinstance(self.runner, DecoderRunner)
                self.runner.backends = chosen
        sketcher = SparseDrafter.of(config, self.runner, backend, self.pool)
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
        shared = _shared(config, self._attention, layout, self.pool, self.runner)
        self._loop = StepLoop(
            config, self.pool, self.runner, self.sessions, self._root, self._attention, sketcher, shared
        )
        self._backlog: deque[Output] = deque()
        self._arrivals = 0

    # -- requests ----------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: empty prompt, unknown token id, duplicate id, impossible grammar.
            ContextLengthExceeded: the prompt leaves no room for a token.
            Overloaded: the queue is full.
        """
        self._loop.waiting[request.id] = self._sequence(request)

    def abort(self, request_id: str) -> bool:
        """Drop a request before the next step; its blocks are free at once. False if it is not there."""
        found = self._loop.remove(request_id)
        self._loop.count["aborted"] += found
        return found

    @property
    def has_work(self) -> bool:
        """Whether ``step`` would do or return something."""
        return bool(self._backlog) or (not self.paused and self._busy)

    def step(self) -> list[Output]:
        """Run one batch; returns what each of its sequences gained. Empty if there is nothing to do."""
        outputs = list(self._backlog)
        self._backlog.clear()
        if self.paused or not self._busy:
            return outputs
        return outputs + self._loop.step()

    def generate(self, requests: Iterable[Request]) -> dict[str, list[Output]]:
        """Run requests to their end; outputs by request id. Other requests keep running beside them.

        Raises:
            TierFailure: the KV of one of them could not be read (``EngineConfig.kv_budget``); the rest are dropped.
        """
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
                    if output.error is not None:
                        for name in open_ids:
                            self.abort(name)
                        raise TierFailure(output.error)
                    if output.finish_reason is not None:
                        open_ids.discard(output.id)
                else:
                    foreign.append(output)
        self._backlog.extend(foreign)
        return mine

    def score(self, tokens: Tokens[int], exact: int | None = None) -> F32:
        """Log-probabilities float32 ``[len - 1]`` of ``tokens[1:]``: the bits generation would report.

        ``exact`` is the length of the prompt that was generated from; only sparse attention needs to know.
        """
        params = SamplingParams(max_tokens=0, prompt_logprobs=0)
        request = Request(f"score-{secrets.token_hex(8)}", tuple(tokens), params, exact=exact)
        (output,) = self.generate([request])[request.id]
        assert output.prompt_logprobs is not None
        return np.array([entry.logprob for entry in output.prompt_logprobs[1:] if entry], np.float32)

    def embed(self, tokens: Tokens[int]) -> F32:
        """Mean of the final hidden states, float32 ``[hidden]``, L2-normalised."""
        request = Request(f"embed-{secrets.token_hex(8)}", tuple(tokens), SamplingParams(max_tokens=0), embed=True)
        (output,) = self.generate([request])[request.id]
        return np.array(output.embedding, np.float32)

    def park(self, request_id: str) -> None:
        """Let a running request rest: it keeps its KV and gains nothing until ``unpark``.

        Raises:
            NotFound: it does not run here.
        """
        sequence = self._loop.running.pop(request_id, None)
        if sequence is None:
            raise NotFound(f"request {request_id!r} does not run in the engine", param="request_id")
        sequence.drafts, sequence.branches = [], []
        self._loop.parked[request_id] = sequence

    def unpark(self, request_id: str) -> None:
        """Let a parked request go on.

        Raises:
            NotFound: it is not parked here.
        """
        sequence = self._loop.parked.pop(request_id, None)
        if sequence is None:
            raise NotFound(f"request {request_id!r} is not parked in the engine", param="request_id")
        self._loop.waiting[request_id] = sequence

    def draft_with(self, drafter: BatchDrafter | None) -> None:
        """Let ``drafter`` guess tokens before every step; None ends that. Never changes a result."""
        self._loop.drafter = drafter

    # -- state that moves --------------------------------------------------------------------------

    def export_state(self, request_id: str, pooled: bool = False) -> bytes:
        """Take a request out of this engine as bytes: its tokens, its noise key and its KV.

        ``pooled`` leaves out the blocks that were given to the shared pool, where the next engine finds them.

        Raises:
            NotFound: no such request here.
        """
        sequence = self._loop.find(request_id)
        if sequence is None:
            raise NotFound(f"request {request_id!r} is not in the engine", param="request_id")
        skipped = 0
        if pooled and self._loop.shared is not None:
            self._loop.shared.drain()
            skipped = sequence.table.published
        used = sequence.table.blocks[skipped : -(-sequence.computed // BLOCK_SIZE)]
        data = transfer.pack(self._identity(), sequence, skipped, self.runner.read_blocks(used))
        self._loop.remove(request_id)
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
        # The sum of an embedding did not travel: it begins again.
        if not state.request.embed:
            self._loop.restore(sequence, state)
        self._loop.waiting[state.request.id] = sequence
        return state.request.id

    def take_over(self, request: Request, seed: int, output: Tokens[int]) -> None:
        """Queue a request whose first ``output`` tokens another engine has handed out already; the rest follows.

        Raises:
            InvalidRequest: see ``submit``; or the tokens contradict the request's grammar.
        """
        sequence = self._sequence(request, seed=seed)
        blocks = self.runner.read_blocks([])
        transfer.replay(sequence, transfer.State(request, seed, tuple(output), 0, 0, [None], 0, blocks))
        self._loop.waiting[request.id] = sequence

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
        self._loop.reweigh()

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
            running=len(self._loop.running),
            waiting=len(self._loop.waiting),
            kv_blocks_total=self.pool.total,
            kv_blocks_free=self.pool.free,
            kv_blocks_cached=self.pool.cached,
            sessions=len(self.sessions),
            session_bytes_parked=self.sessions.parked_bytes,
            paused=self.paused,
            weight_version=self.version,
            **({} if self._loop.shared is None else self._loop.shared.counts()),
            **self._loop.count,
        )

    # -- small parts -------------------------------------------------------------------------------

    def _sequence(self, request: Request, seed: int | None = None) -> Sequence:
        params = request.params
        if self._loop.find(request.id) is not None:
            raise InvalidRequest(f"request id {request.id!r} is already in the engine", param="id")
        if len(self._loop.waiting) >= self.config.max_waiting:
            raise Overloaded(f"{len(self._loop.waiting)} requests are waiting; retry later")
        self._check_prompt(request)
        if self._attention.exact_prompts and request.session is not None:
            raise InvalidRequest(
                f"sessions need answers computed like prompts, and this engine runs {self.config.attention!r}",
                param="session",
            )
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
            detokenizer=Detokenizer(self.tokenizer, params.show_special),
            stop=StopMatcher(params.stop, params.include_stop),
            eos=frozenset(self.info.eos_ids),
            grammar=grammar,
            drafter=NgramDrafter(self.config.max_draft) if self.config.speculate == "ngram" else None,
            context=Context(self._exact(request), request.id),
            tokens=list(request.prompt),
            embedding=np.zeros(self.info.hidden_size) if request.embed else None,
        )
        sequence.sampler.begin(request.prompt)
        return sequence

    def _exact(self, request: Request) -> int:
        """Leading tokens of ``request`` that are computed exactly."""
        whole = request.attention == "full" and self._attention.exact_prompts
        if not whole and request.attention not in (None, self.config.attention):
            known = dict.fromkeys([*(["full"] if self._attention.exact_prompts else []), self.config.attention])
            raise InvalidRequest(
                f"attention must be {' or '.join(known)} on this server, got {request.attention!r}", param="attention"
            )
        if whole:
            return self.info.max_model_len
        return len(request.prompt) if request.exact is None else request.exact

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

    @property
    def _busy(self) -> bool:
        return bool(self._loop.running or self._loop.waiting)

    def _identity(self) -> str:
        bits = f"{self._layout.name}/{self.runner.arithmetic}{self._attention.identity}"
        return f"{self.info.fingerprint}/{self.info.quant}/{self.version}/{bits}"

    def _root(self, salt: str) -> bytes:
        return root_key(self._identity(), salt)


def kv_layout(config: EngineConfig) -> KVLayout:
    """How the KV blocks of ``config``'s model lie in memory; reads its settings only.

    Raises:
        InvalidCheckpoint: the model files are missing or wrong.
    """
    return _layout(config, parse_config(Checkpoint(resolve(config.model)).config))


def _layout(config: EngineConfig, decoder: DecoderConfig) -> KVLayout:
    return KVLayout(decoder.layers, decoder.kv_heads, decoder.head_dim, "fp32" if config.quant == "fp32" else "bf16")


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
    if config.backend == "cuda" or (config.backend == "auto" and _cuda_runs()):
        from statepool.engine.gpu import GpuRunner

        return GpuRunner(decoder, checkpoint, config.quant, layout, blocks, max_len), "cuda"
    ops: Any
    if config.backend == "torch" or (config.backend == "auto" and kernels is None):
        from statepool.engine import ops

        backend = "torch"
    else:
        if kernels is None:
            raise InvalidConfig(f"backend 'native' is not available: {reason}", param="backend")
        ops, backend = kernels, "native"
        if config.threads is not None:
            kernels.set_threads(config.threads)
    if config.stages > 1:
        from statepool.engine.stages import StagedRunner

        shape = (config.quant, layout, blocks, max_len, config.stages, config.threads)
        return StagedRunner(ops, decoder, checkpoint, *shape), backend
    return DecoderRunner(ops, decoder, checkpoint, config.quant, layout.allocate(blocks), max_len), backend


def _shared(
    config: EngineConfig, attention: AttentionSpec, layout: KVLayout, own: BlockPool, runner: Runner
) -> SharedBlocks | None:
    if config.pool is None:
        return None
    from statepool.kv.pool import Pool

    inward, outward, *more = (
        Pool(
            config.pool_addresses,
            layout.block_bytes,
            config.pool_replicas,
            connections=config.pool_connections,
        )
        for _ in range(4 if attention.exact_prompts else 2)
    )
    inward.check()
    clusters = attention.share(runner, layout.block_bytes, *more) if more else None
    return SharedBlocks(inward, outward, own, runner, clusters)


def _cuda_runs() -> bool:
    why = cuda.missing()
    if why is not None and cuda.devices():
        _log.warning("there is a CUDA device, but it is not in use: %s", why)
    return why is None
