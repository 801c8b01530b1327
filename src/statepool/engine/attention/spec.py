"""``--attention``: which kind of attention which layer runs, read from one line of text."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from statepool.core.errors import InvalidConfig
from statepool.engine.attention.moba.config import MobaConfig
from statepool.engine.attention.wave.config import WaveConfig

if TYPE_CHECKING:
    from statepool.engine.attention import Backend
    from statepool.engine.attention.wave.backend import WaveAttention
    from statepool.engine.attention.wave.buffer import WaveBuffer
    from statepool.engine.attention.wave.shared import SharedClusters
    from statepool.engine.runner import Runner
    from statepool.kv.pool import Pool

_KINDS: dict[str, Any] = {"wave": WaveConfig, "moba": MobaConfig}
_LAYERS = ("first", "last")


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """``full``, or a sparse kind with its settings; ``first`` and ``last`` layers stay full."""

    sparse: WaveConfig | MobaConfig | None = None
    first: int = 0
    last: int = 0

    @classmethod
    def parse(cls, text: str) -> AttentionSpec:
        """Read ``full``, ``KIND`` or ``KIND:NAME=VALUE,…`` with the names of its settings, ``first`` and ``last``.

        Kinds are ``wave`` (``WaveConfig``; ``wave:paper`` takes the published settings) and ``moba`` (``MobaConfig``).

        Raises:
            InvalidConfig: unknown kind or name, or an impossible value.
        """
        kind, _, rest = text.partition(":")
        if kind == "full" and not rest:
            return cls()
        if kind not in _KINDS:
            raise InvalidConfig(f"attention must be full, wave or moba, got {text!r}", param="attention")
        make = _KINDS[kind]
        known = {item.name: str(item.type) for item in fields(make)} | dict.fromkeys(_LAYERS, "int")
        values: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            name, _, value = part.partition("=")
            if part == "paper" and kind == "wave":
                make = WaveConfig.paper
            elif name in known:
                values[name] = _value(name, value, known[name])
            else:
                raise InvalidConfig(
                    f"attention: {kind} has no setting {name!r}; it has {', '.join(known)}", param="attention"
                )
        layers = {name: values.pop(name, 0) for name in _LAYERS}
        return cls(make(**values), **layers)

    @property
    def exact_prompts(self) -> bool:
        """Whether a prompt is computed otherwise than an answer, so that an answer's KV serves no prompt."""
        return isinstance(self.sparse, WaveConfig)

    @property
    def identity(self) -> str:
        """A text that differs whenever results would; empty for full attention."""
        return f"/{self}" if self.sparse is not None else ""

    def backends(
        self,
        runner: Runner,
        backend: str,
        cache_bytes: int,
        buffer: WaveBuffer | None = None,
        trace: str | None = None,
    ) -> list[Backend]:
        """What each layer of ``runner``, whose arithmetic is called ``backend``, is to run; empty for full attention.

        Raises:
            InvalidConfig: it runs no sparse attention, or has fewer layers than are to stay full.
        """
        from statepool.engine.attention.moba.backend import MobaAttention
        from statepool.engine.attention.wave.backend import WaveAttention
        from statepool.engine.attention.wave.trace import SelectionTrace
        from statepool.engine.runner import DecoderRunner

        if trace is not None and not isinstance(self.sparse, WaveConfig):
            raise InvalidConfig("trace_selection needs wave attention", param="trace_selection")
        if self.sparse is None:
            return []
        if backend != "native" or not isinstance(runner, DecoderRunner):
            raise InvalidConfig(
                f"sparse attention needs the native backend, and this one is {backend}", param="attention"
            )
        layers, width = len(runner.backends), runner.decoder.head_dim
        if self.first + self.last > layers:
            raise InvalidConfig(
                f"attention: first and last name more layers than the model's {layers}", param="attention"
            )
        sparse: WaveAttention | MobaAttention
        if isinstance(self.sparse, WaveConfig):
            selection = SelectionTrace(trace) if trace is not None else None
            sparse = WaveAttention(
                runner.backends[0], runner.blocks, width, self.sparse, cache_bytes, buffer, selection
            )
        else:
            sparse = MobaAttention(runner.blocks, width, self.sparse)
        chosen = list(runner.backends)
        chosen[self.first : layers - self.last] = [sparse] * (layers - self.first - self.last)
        return chosen

    def share(self, runner: Any, block_bytes: int, inward: Pool, outward: Pool) -> SharedClusters | None:
        """Let the wave layers of ``runner`` have clusters from the pool; None if there are none."""
        layers = range(self.first, len(runner.backends) - self.last)
        if not layers:
            return None
        wave: WaveAttention = runner.backends[self.first]
        return wave.share(inward, outward, block_bytes, layers)


def _value(name: str, text: str, kind: str) -> Any:
    try:
        if kind == "int":
            number = int(text)
            if number < 0:
                raise ValueError
            return number
        return float(text) if kind == "float" else text
    except ValueError:
        raise InvalidConfig(
            f"attention: {name} must be {'a count' if kind == 'int' else 'a number'}, got {text!r}", param="attention"
        ) from None
