"""A model on a torch device with its attention on workers of the host: the reference ops give the CPU's bits."""

import pytest
from tests.lamina.asking import answers, requests

from statepool.core.errors import InvalidConfig

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("quant", "here"), [("int8", 0), ("fp32", 0), ("int8", 1), ("fp32", 1)])
def test_bits_of_the_device_are_those_of_the_host(engines, nodes, quant, here, monkeypatch):
    from statepool.engine.attention.remote import gpu, offload

    init = gpu.GpuRemoteRunner.__init__
    monkeypatch.setattr(
        gpu.GpuRemoteRunner, "__init__", lambda self, *parts: init(self, *parts, device="cpu", wanted={})
    )
    asked = list(requests(3, seed=31, lengths=(3, 40), answer=4))
    split = {"attention_here": here} if here else {"attention_split": "sequence"}
    workers = ",".join(nodes(1 if here else 2))
    apart = engines(attention_workers=workers, backend="cuda", quant=quant, kv_bytes=8 << 20, **split)
    assert isinstance(apart.runner, offload.RemoteRunner)
    assert apart.info.backend == "cuda"
    assert answers(apart, asked) == answers(engines(quant=quant, kv_bytes=8 << 20), asked)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(engines, nodes):
    with pytest.raises(InvalidConfig, match="cuda"):
        engines(attention_workers=",".join(nodes(1)), backend="cuda")
