"""A model as a graph of operators with the bytes of what they make, and its slices between the attentions.

An attention is taken out; what was computed before it and is wanted behind it has to be kept meanwhile. Which operators
go before and which behind is free as far as they do not depend on the attention, and the best choice keeps the fewest
bytes: a minimum cut, in which a value counts once however many read it. ``n`` attentions make ``n + 1`` slices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from statepool.core.errors import InvalidRequest
from statepool.engine.slicing.mincut import INFINITE, Network

__all__ = ["Cut", "Op", "OpGraph", "Slice", "Slicing", "slice_graph"]

Kind = Literal["input", "op", "attention", "output"]


@dataclass(frozen=True, slots=True)
class Op:
    """An operator: what it reads, and the bytes of what it makes, per token.

    The first three inputs of an attention are queries, keys and values.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    nbytes: int
    label: str = ""


@dataclass(frozen=True, slots=True)
class OpGraph:
    """Operators by name, each behind those it reads."""

    ops: Mapping[str, Op]

    @classmethod
    def of(cls, ops: Iterable[Op]) -> OpGraph:
        """From operators in topological order.

        Raises:
            InvalidRequest: one reads what comes behind it, or what is not there.
        """
        found: dict[str, Op] = {}
        for op in ops:
            for name in op.inputs:
                if name not in found:
                    raise InvalidRequest(f"operator {op.name} reads {name}, which is not before it", param="ops")
            found[op.name] = op
        return cls(found)

    @property
    def attentions(self) -> list[Op]:
        """In order."""
        return [op for op in self.ops.values() if op.kind == "attention"]

    def readers(self) -> dict[str, list[str]]:
        """Who reads each operator's value."""
        found: dict[str, list[str]] = {name: [] for name in self.ops}
        for op in self.ops.values():
            for name in dict.fromkeys(op.inputs):
                found[name].append(op.name)
        return found

    def before(self, names: Iterable[str]) -> set[str]:
        """``names`` and all that they depend on."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting.extend(self.ops[name].inputs)
        return found

    def behind(self, names: Iterable[str]) -> set[str]:
        """``names`` and all that depends on them."""
        readers, found = self.readers(), set[str]()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting.extend(readers[name])
        return found


@dataclass(frozen=True, slots=True)
class Cut:
    """Around one attention: the values that are kept meanwhile, and their bytes per token."""

    attention: str
    kept: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Slice:
    """What runs between two attentions, in an order that has the queries ready first.

    Attributes:
        query: operators the queries need; they leave for the attention behind these.
        keys: those that keys and values need besides.
        rest: what is left, for later slices. In the last slice all are here.
        attention: the attention behind it; None behind the last.
    """

    query: tuple[str, ...]
    keys: tuple[str, ...]
    rest: tuple[str, ...]
    attention: str | None

    @property
    def ops(self) -> tuple[str, ...]:
        """All of them in order."""
        return self.query + self.keys + self.rest


@dataclass(frozen=True, slots=True)
class Slicing:
    """A graph in slices: ``slices[k]`` runs before attention ``k``, around which is ``cuts[k]``."""

    graph: OpGraph
    slices: list[Slice] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)


def slice_graph(graph: OpGraph) -> Slicing:
    """Cut around every attention.

    Raises:
        InvalidRequest: there is no attention, or one does not depend on the one before it.
    """
    if not graph.attentions:
        raise InvalidRequest("the model has no attention to take out", param="model")
    readers, result, done = graph.readers(), Slicing(graph), set[str]()
    for attention in graph.attentions:
        first = done | graph.before(attention.inputs)
        last = graph.behind([attention.name]) - {attention.name}
        if clash := first & last:
            raise InvalidRequest(f"{attention.name} depends on its own result by {sorted(clash)[0]}", param="model")
        weight, side = _cut(graph, readers, attention.name, first, last)
        kept = [n for n in graph.ops if n in side and any(r not in side for r in readers[n] if r != attention.name)]
        result.cuts.append(Cut(attention.name, tuple(kept), weight))
        result.slices.append(_ordered(graph, side - done - {attention.name}, attention))
        done = side | {attention.name}
    rest = tuple(name for name in graph.ops if name not in done)
    result.slices.append(Slice((), (), rest, None))
    return result


def _cut(
    graph: OpGraph, readers: Mapping[str, list[str]], attention: str, first: set[str], last: set[str]
) -> tuple[int, set[str]]:
    """Weight of the cut and the operators before it. ``first`` are before it in any case, ``last`` behind it."""
    network: Network[tuple[str, str]] = Network()
    source, sink = ("source", ""), ("sink", "")

    def run(name: str) -> tuple[str, str]:
        return source if name in first else sink if name in last else ("run", name)

    network.add(source, sink, 0)
    for name, op in graph.ops.items():
        if name == attention or name in last:
            continue
        value = ("value", name)
        network.add(run(name), value, op.nbytes)
        for reader in readers[name]:
            if reader != attention and reader not in first:
                network.add(value, run(reader), INFINITE)  # read behind the cut: the value is kept
                network.add(run(reader), run(name), INFINITE)  # nobody runs before what it reads
    weight, side = network.cut(source, sink)
    return weight, first | {name for kind, name in side if kind == "run"}


def _ordered(graph: OpGraph, names: set[str], attention: Op) -> Slice:
    query = graph.before(attention.inputs[:1]) & names
    keys = (graph.before(attention.inputs[1:]) & names) - query
    rest = names - query - keys

    def in_order(group: set[str]) -> tuple[str, ...]:
        return tuple(name for name in graph.ops if name in group)

    return Slice(in_order(query), in_order(keys), in_order(rest), attention.name)
