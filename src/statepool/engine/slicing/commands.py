"""``statepool slice``: where a model is cut so that its attentions can run elsewhere."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from statepool.core.command import adder, run
from statepool.core.errors import InvalidConfig
from statepool.engine.hub import resolve

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status."""
    tree = argparse.ArgumentParser(prog="statepool")
    parser = adder(tree)("slice", "cut a model around its attentions, keeping the fewest bytes", _slice)
    parser.add_argument("model", help="folder with a config.json that transformers knows, hub id, or tiny")
    parser.add_argument("--dot", type=Path, metavar="FILE", help="write the graph for Graphviz; - is standard output")
    parser.add_argument(
        "--check", action="store_true", help="run the slices, with random weights, against the whole model"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return run("statepool", tree.parse_args(arguments))


def _slice(options: argparse.Namespace) -> int:
    try:
        from statepool.engine.slicing.capture import capture, read_config
    except ModuleNotFoundError as error:
        raise InvalidConfig(f"slice needs {error.name}; pip install 'statepool[slice]'", param="model") from None
    from statepool.engine.slicing.dot import as_dot, as_table
    from statepool.engine.slicing.graph import slice_graph

    path = resolve(options.model)
    config = read_config(path)
    slicing = slice_graph(capture(config).graph)
    if options.dot is not None:
        text = as_dot(slicing, f"{config.model_type} in {len(slicing.slices)} slices")
        if str(options.dot) == "-":
            print(text, end="")
            return 0
        options.dot.write_text(text)
    if options.json:
        print(json.dumps({"slices": [asdict(s) for s in slicing.slices], "cuts": [asdict(c) for c in slicing.cuts]}))
    else:
        print(as_table(slicing))
    if not options.check:
        return 0
    equal = _check(config)
    print("the slices give the logits of the whole model" if equal else "THE LOGITS DIFFER", file=sys.stderr)
    return 0 if equal else 1


def _check(config: object) -> bool:
    """Whether the slices compute what the model does, to the last bit, for a row of tokens."""
    import torch

    from statepool.engine.slicing.capture import attentive
    from statepool.engine.slicing.run import SlicedModel, WholeAttention

    torch.manual_seed(0)
    model = attentive(config)
    tokens = torch.randint(0, model.config.vocab_size, (1, 24))
    positions = torch.arange(24)[None]
    with torch.no_grad():
        whole = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
    return bool(torch.equal(SlicedModel(model)(tokens, positions, WholeAttention()), whole))


if __name__ == "__main__":
    sys.exit(main(["slice", *sys.argv[1:]]))
