"""An engine without a model: it answers with what stands between ``{{`` and ``}}`` in the last message.

It speaks the interface of ``statepool.engine.engine.Engine``, one token per sequence and step, so that transport and
dialects are tested with answers the test chose. ``boom`` in the prompt makes a step fail, ``stall``
makes the answer endless.
"""

import re
from pathlib import Path

from statepool.core.errors import InvalidRequest, NotFound
from statepool.engine.config import EngineStats, ModelInfo
from statepool.engine.request import Output, TokenLogprob, Usage
from statepool.engine.text.detokenize import Detokenizer
from statepool.engine.text.stop import StopMatcher
from statepool.engine.text.tokenizer import Tokenizer


class EchoSessions:
    """Session names by salt."""

    def __init__(self):
        self.kept = []

    def names(self, salt):
        return [name for owner, name in self.kept if owner == salt]

    def drop(self, salt, name):
        if (salt, name) not in self.kept:
            raise NotFound(f"session {name!r} does not exist", param="session")
        self.kept.remove((salt, name))

    def fork(self, salt, name, new):
        if (salt, name) not in self.kept:
            raise NotFound(f"session {name!r} does not exist", param="session")
        self.kept.append((salt, new))

    def park(self, salt, name):
        if (salt, name) not in self.kept:
            raise NotFound(f"session {name!r} does not exist", param="session")


class EchoEngine:
    """See the module."""

    def __init__(self, config):
        self.config = config
        self.tokenizer = Tokenizer.load(config.model)
        self.sessions = EchoSessions()
        self.paused = False
        self.version = "0"
        self.info = ModelInfo(
            id=Path(config.model).name,
            path=config.model,
            family="echo",
            fingerprint="echo",
            quant="fp32",
            backend="echo",
            max_model_len=config.max_model_len or 1024,
            vocab_size=self.tokenizer.vocab_size,
            hidden_size=4,
            layers=1,
            parameters=0,
            eos_ids=self.tokenizer.eos_ids,
            kv_token_bytes=1,
        )
        self.live = {}
        self.steps = 0

    @property
    def has_work(self):
        return bool(self.live) and not self.paused

    def submit(self, request):
        if 300 in request.prompt:
            raise InvalidRequest("token 300 is not welcome", param="prompt")
        text = self.tokenizer.decode(request.prompt, skip_special=False)
        marked = re.findall(r"\{\{(.*?)\}\}", text, re.DOTALL)
        answer = self.tokenizer.encode(marked[-1] if marked else "ok", allow_special=True)
        if "boom" in text:
            answer = None
        if "stall" in text:
            answer = [self.tokenizer.encode("z")[0]] * 1_000_000
        stop = StopMatcher(request.params.stop, request.params.include_stop)
        self.live[request.id] = [request, answer, 0, Detokenizer(self.tokenizer, request.params.show_special), stop]

    def abort(self, name):
        return self.live.pop(name, None) is not None

    def step(self):
        self.steps += 1
        return [self._advance(name) for name in list(self.live)]

    def _advance(self, name):
        request, answer, done, detokenizer, stop = self.live[name]
        if answer is None:
            raise RuntimeError("boom")
        params = request.params
        prompt_logprobs = None
        if params.prompt_logprobs is not None and done == 0:
            prompt_logprobs = (None, *(TokenLogprob(token, -2.0, ((token, -2.0),)) for token in request.prompt[1:]))
        tokens = tuple(answer[done : done + 1]) if params.max_tokens else ()
        text, matched = stop.push(detokenizer.push(list(tokens)))
        done += len(tokens)
        self.live[name][2] = done
        finish = None
        if matched is not None or (done >= len(answer) and params.max_tokens):
            finish = "stop"
        elif done >= params.max_tokens:
            finish = "length"
        usage = None
        if finish is not None:
            if matched is None:
                text += stop.push(detokenizer.finish())[0] + stop.finish()
            del self.live[name]
            usage = Usage(len(request.prompt), done, len(request.prompt) // 16 * 16)
            if request.session:
                self.sessions.kept.append((request.salt, request.session))
        logprobs = tuple(TokenLogprob(token, -1.0, ((token, -1.0),)) for token in tokens)
        return Output(
            name,
            tokens,
            text,
            logprobs if params.logprobs is not None else (),
            (-1.0,) * len(tokens) if params.logprobs is not None else (),
            prompt_logprobs,
            finish,
            matched,
            usage=usage,
            embedding=(1.0, 0.0, 0.0, 0.0) if request.embed and finish is not None else None,
        )

    def stats(self):
        return EngineStats(
            running=len(self.live),
            kv_blocks_total=10,
            kv_blocks_free=10 - len(self.live),
            steps=self.steps,
            paused=self.paused,
            sessions=len(self.sessions.kept),
            weight_version=self.version,
        )

    def pause(self):
        self.paused = True

    def resume(self):
        self.paused = False

    def reset_prefix_cache(self):
        pass

    def update_weights(self, tensors, version):
        list(tensors)
        self.version = version

    def export_state(self, request_id):
        raise NotFound(request_id)

    def import_state(self, data):
        raise NotFound("nothing")


class BrokenEngine:
    """Fails to load."""

    def __init__(self, config):
        raise InvalidRequest("this engine never loads", param="model")
