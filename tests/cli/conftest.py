"""An engine that answers with the prompt, reversed, so that files and screens can be tested without a model."""

from types import SimpleNamespace

import pytest
from tests.small_models import byte_tokenizer

from statepool.core.errors import InvalidRequest
from statepool.engine.request import Output, Usage
from statepool.engine.text.tokenizer import Tokenizer


class EchoEngine:
    """The part of ``Engine`` that batch and chat use. Yields one token of one request per step, round robin."""

    def __init__(self, folder, max_seqs=2):
        self.info = SimpleNamespace(id="echo", path=str(folder))
        self.config = SimpleNamespace(max_seqs=max_seqs)
        self.tokenizer = Tokenizer(byte_tokenizer())
        self.open = {}
        self.most_open = 0
        self.submitted = []

    def submit(self, request):
        if not request.prompt:
            raise InvalidRequest("prompt must hold at least one token", param="prompt")
        self.submitted.append(request)
        self.open[request.id] = (request, list(request.prompt))
        self.most_open = max(self.most_open, len(self.open))

    def abort(self, name):
        return self.open.pop(name, None) is not None

    def step(self):
        if not self.open:
            return []
        name, (request, left) = next(iter(self.open.items()))
        del self.open[name]
        token = left.pop()
        done = len(request.prompt) - len(left)
        reason = "stop" if not left else "length" if done == request.params.max_tokens else None
        usage = Usage(len(request.prompt), done, 0) if reason else None
        if reason is None:
            self.open[name] = (request, left)
        seed = request.params.seed or 0
        return [Output(name, (token,), self.tokenizer.decode([token]), finish_reason=reason, usage=usage, seed=seed)]


TEMPLATE = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"


@pytest.fixture
def engine(tmp_path):
    """An ``EchoEngine`` with a chat template that brackets every message."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return EchoEngine(folder)
