"""A sliced model as Graphviz text, and as a table."""

from __future__ import annotations

from statepool.engine.slicing.graph import Slicing

__all__ = ["as_dot", "as_table"]


def as_dot(slicing: Slicing, title: str) -> str:
    """Slices as boxes, attentions as ellipses between them; red arrows are what is kept meanwhile."""
    ops = slicing.graph.ops
    lines = ["digraph slices {", "  rankdir=TB; node [shape=box, fontsize=10, fontname=sans];", f'  label="{title}";']
    for number, part in enumerate(slicing.slices):
        lines.append(f'  subgraph cluster_{number} {{ label="slice {number}"; style=filled; fillcolor="#eef3fa";')
        lines += [f'    "{name}" [label="{ops[name].label or name}"];' for name in part.ops]
        lines.append("  }")
    for attention in slicing.graph.attentions:
        lines.append(f'  "{attention.name}" [shape=ellipse, style=filled, fillcolor="#fde6c8", label="attention"];')
    place = {name: number for number, part in enumerate(slicing.slices) for name in part.ops}
    for op in ops.values():
        for source in dict.fromkeys(op.inputs):
            crossing = source in place and op.name in place and place[source] != place[op.name]
            style = f' [color=red, label="{ops[source].nbytes} B"]' if crossing else ""
            lines.append(f'  "{source}" -> "{op.name}"{style};')
    return "\n".join([*lines, "}"]) + "\n"


def as_table(slicing: Slicing) -> str:
    """One line a slice: how many operators, which of them the queries wait for, what is sent and what is kept."""
    ops = slicing.graph.ops
    rows = ["slice  operators  before Q  before KV   sends Q, KV  receives      keeps  what is kept (bytes per token)"]
    for number, part in enumerate(slicing.slices):
        line = f"{number:5}  {len(part.ops):9}"
        if part.attention is not None:
            q, k, v, *_ = (ops[name].nbytes for name in ops[part.attention].inputs)
            cut = slicing.cuts[number]
            kept = ", ".join(f"{name} {ops[name].nbytes}" for name in cut.kept)
            line += f"  {len(part.query):8}  {len(part.keys):9}  {q:6} {k + v:6}"
            line += f"  {ops[part.attention].nbytes:8}  {cut.nbytes:9}  {kept}"
        rows.append(line)
    total = sum(cut.nbytes for cut in slicing.cuts)
    sent = sum(sum(ops[name].nbytes for name in a.inputs[:3]) + a.nbytes for a in slicing.graph.attentions)
    rows.append(
        f"{len(slicing.slices)} slices, {sent} bytes per token between model and attention, {total} kept meanwhile"
    )
    return "\n".join(rows)
