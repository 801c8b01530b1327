"""``--attention``: which kind of attention which layer runs, read from one line of text."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from statepool.core.errors import InvalidConfig
from statepool.engine.attention.wave.config import WaveConfig

if TYPE_CHECKING:
    from statepool.engine.runner import Runner

_LAYERS = ("first", "last")


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """``full``, or a sparse kind with its settings; ``first`` and ``last`` layers stay full."""

    wave: WaveConfig | None = None
    first: int = 0
    last: int = 0

    @classmethod
    def parse(cls, text: str) -> AttentionSpec:
        """Read ``full``, ``wave`` or ``wave:NAME=VALUE,…`` with the names of ``WaveConfig``, ``first`` and ``last``.

        ``wave:paper`` takes the published settings.

        Raises:
            InvalidConfig: unknown kind or name, or an impossible value.
        """
        kind, _, rest = text.partition(":")
        if kind == "full" and not rest:
            return cls()
        if kind != "wave":
            raise InvalidConfig(f"attention must be full or wave, got {text!r}", param="attention")
        known = {item.name: item.type for item in fields(WaveConfig)}
        values: dict[str, Any] = {}
        make: Any = WaveConfig
        for part in filter(None, rest.split(",")):
            name, _, value = part.partition("=")
            if name == "paper" and not value:
                make = WaveConfig.paper
            elif name in known or name in _LAYERS:
                values[name] = _value(name, value, str(known.get(name, "int")))
            else:
                names = ", ".join((*known, *_LAYERS, "paper"))
                raise InvalidConfig(f"attention: wave has no setting {name!r}; it has {names}", param="attention")
        layers = {name: values.pop(name, 0) for name in _LAYERS}
        return cls(make(**values), **layers)

    @property
    def sparse(self) -> bool:
        """Whether any token's attention may leave keys out."""
        return self.wave is not None

    @property
    def identity(self) -> str:
        """A text that differs whenever results would; empty for full attention."""
        return f"/{self}" if self.sparse else ""

    def install(self, runner: Runner, backend: str, cache_bytes: int) -> None:
        """Put the backends into ``runner``, whose arithmetic is called ``backend``.

        Raises:
            InvalidConfig: it runs no sparse attention, or has fewer layers than are to stay full.
        """
        from statepool.engine.attention.wave.backend import WaveAttention
        from statepool.engine.runner import DecoderRunner

        assert self.wave is not None
        if backend != "native" or not isinstance(runner, DecoderRunner):
            raise InvalidConfig(
                f"attention wave needs the native backend, and this one is {backend}", param="attention"
            )
        layers = len(runner.backends)
        if self.first + self.last > layers:
            raise InvalidConfig(
                f"attention: first and last name more layers than the model's {layers}", param="attention"
            )
        wave = WaveAttention(runner.backends[0], runner.storage, runner.decoder.head_dim, self.wave, cache_bytes)
        for i in range(self.first, layers - self.last):
            runner.backends[i] = wave


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
