"""`statepool train`: commands that train models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Train models.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Train models."""


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, curve and tokenizer.")],
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Stop after this step of the recipe.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after this time.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in --out.")] = False,
    threads: Annotated[int, typer.Option(help="Threads for torch.")] = 1,
    eval_only: Annotated[bool, typer.Option(help="Do not train; evaluate the checkpoint.")] = False,
    export: Annotated[Path | None, typer.Option(help="Write the model here in the Hugging Face layout.")] = None,
    count: Annotated[int, typer.Option(help="Problems per family and size in the evaluation.")] = 50,
) -> None:
    """Train the bundled model from nothing on synthetic tasks, then evaluate it."""
    import torch

    from statepool.train import evaluate as judge
    from statepool.train import pretrain as recipe
    from statepool.train.export import export as write

    torch.set_num_threads(threads)
    chosen = recipe.Recipe(seed=seed)
    if eval_only:
        run = recipe.Run(chosen, out, resume=True)
    else:
        run = recipe.pretrain(chosen, out, resume=resume, steps=steps, minutes=minutes)
    if export is not None:
        write(run.model, run.corpus.tokenizer, export)
        typer.echo(f"wrote {export}")
    for quantise in (False, True) if count else ():
        for row in judge.evaluate(run.model, run.corpus, count, quantise):
            typer.echo(json.dumps({"numbers": "int8" if quantise else "fp32", **row}))


if __name__ == "__main__":
    app()
