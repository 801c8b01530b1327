"""G13: losses and advantages against verL's, gradients against TRL's, on the same batches."""

from __future__ import annotations

import itertools
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.peers.setup import python_of
from bench.row import Row
from statepool import bundled
from statepool.train.grpo import LossConfig, Total, advantages, distance, policy_loss, token_losses
from statepool.train.grpo import aggregate as add_up
from statepool.train.policy import HubPolicy, OwnPolicy, Policy
from statepool.train.prefix_tree import Sample

HERE = Path(__file__).parent
AGGREGATES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")


def run(quick: bool) -> Iterator[Row]:
    """The two rows of G13."""
    row = Row("G13", "losses and advantages: largest difference from verL's", "", "lower", 1e-6, peer="verl 0.9.1")
    row.own, row.note = _verl(row)
    yield row
    row = Row("G13b", "gradients: largest difference from TRL's, of the largest", "", "lower", 1e-6, peer="trl 1.16.0")
    row.own, row.note = _trl(row, quick)
    yield row


def cases() -> list[dict[str, Any]]:
    """Drawn batches with empty rows, groups of one and without variance, ratios on both sides of every clip."""
    found: list[dict[str, Any]] = []
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for size in (1, 4, 9):
        mask = (torch.rand(size, 11, generator=generator) < 0.7).double()
        mask[:, 0] = 1
        rewards = (torch.rand(size, generator=generator) < 0.5).double()
        groups = [min(i // 3, 2) if size > 4 else 0 for i in range(size)]
        for drawn, normalise in itertools.product((rewards, rewards * 0 + 1, normal(size)), ("group", "none", "rloo")):
            found.append(
                {"kind": "advantages", "rewards": drawn, "mask": mask, "groups": groups, "normalise": normalise}
            )
    for ratio, way, dual, weighted, spread in itertools.product(
        ("token", "sequence", "cispo"), AGGREGATES, (1.5, 3.0), (False, True), (0.1, 1.0)
    ):
        mask = (torch.rand(6, 13, generator=generator) < 0.7).double()
        mask[2] = 0
        old = -normal(6, 13).abs()
        found.append(
            {
                "kind": "loss", "ratio": ratio, "aggregate": way, "dual_clip": dual, "clip_low": 0.2, "clip_high": 0.28,
                "length": 17 if way.endswith("norm") else None, "mask": mask, "old": old,
                "logprobs": old + spread * normal(6, 13), "advantages": normal(6, 1).expand(6, 13),
                "weights": (0.5 + torch.rand(6, 13, generator=generator).double()) if weighted else None,
            }
        )  # fmt: skip
    found += [
        {"kind": "kl", "kl_kind": kind, "logprobs": -normal(5, 7).abs(), "reference": -normal(5, 7).abs()}
        for kind in ("k1", "k2", "k3")
    ]
    return found


def ours(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Our numbers for one case."""
    if case["kind"] == "advantages":
        return {"value": advantages(case["rewards"], case["groups"], case["normalise"])[:, None] * case["mask"]}
    logprobs = case["logprobs"].clone().requires_grad_()
    if case["kind"] == "kl":
        return {"value": distance(logprobs, case["reference"], case["kl_kind"]).detach()}
    names = ("ratio", "clip_low", "clip_high", "dual_clip", "aggregate", "length")
    config = LossConfig(**{name: case[name] for name in names})
    losses, _ = token_losses(logprobs, case["old"], case["advantages"], case["mask"], config)
    if case["weights"] is not None:
        losses = losses * case["weights"]
    loss = add_up(losses, case["mask"], config, Total.of(case["mask"]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    return {"value": loss.detach(), "grad": logprobs.grad}


def apart(drawn: list[dict[str, Any]], theirs: list[dict[str, torch.Tensor]]) -> float:
    """The largest difference of any number of any case."""
    found = 0.0
    for case, other in zip(drawn, theirs, strict=True):
        mine = ours(case)
        found = max(found, *(float((mine[name] - value).abs().max()) for name, value in other.items()))
    return found


def ask(peer: str, script: str, *arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run a worker with the peer's interpreter.

    Raises:
        FileNotFoundError: the peer is not installed. RuntimeError: it failed.
    """
    python = python_of(peer)
    if python is None:
        raise FileNotFoundError(f"{peer} is not installed: python -m bench.peers.setup {peer}")
    command = [str(python), str(HERE / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{script} failed: {done.stderr[-2000:]}")
    return done


def verl_answers(drawn: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
    """verL's numbers for cases."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "cases.pt", Path(folder) / "answers.pt"
        torch.save(drawn, source)
        ask("verl", "verl_worker.py", str(source), str(target))
        answers: list[dict[str, torch.Tensor]] = torch.load(target, weights_only=True)
    return answers


def _verl(row: Row) -> tuple[str, str]:
    drawn = cases()
    try:
        row.value = apart(drawn, verl_answers(drawn))
    except (FileNotFoundError, RuntimeError) as error:
        return "", str(error)
    return f"{row.value:.1e}", f"{len(drawn)} batches in float64: 3 ratios, 4 aggregations, both clips, 3 KL, weights"


def trl_cases(quick: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Batches of token ids: as TRL wants them, and what of them is ours."""
    generator = torch.Generator().manual_seed(1)
    asked, mine = [], []
    kinds = [("dapo", "token"), ("grpo", "token"), ("dr_grpo", "token"), ("grpo", "sequence")]
    for loss_type, level in kinds[: 1 if quick else None]:
        prompt = torch.randint(9, 1024, (30,), generator=generator)
        lengths = torch.randint(3, 20, (8,), generator=generator).tolist()
        width = max(lengths)
        ids = torch.randint(9, 1024, (8, width), generator=generator)
        kept = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])
        tool = torch.ones_like(kept)
        tool[::2, 2] = 0
        values = torch.randn(8, generator=generator, dtype=torch.float64)
        noise = torch.randn(8, width, generator=generator, dtype=torch.float64) * 0.3
        common = {"loss_type": loss_type, "level": level, "clip_low": 0.2, "clip_high": 0.28, "advantages": values}
        asked.append(
            {**common, "prompt_ids": prompt.expand(8, -1), "prompt_mask": torch.ones(8, 30, dtype=torch.int64),
             "completion_ids": ids, "completion_mask": kept, "tool_mask": tool, "noise": noise}
        )  # fmt: skip
        samples = [
            Sample(
                [*prompt.tolist(), *ids[i, :n].tolist()],
                [False] * 30 + tool[i, :n].bool().tolist(),
                30,
            )
            for i, n in enumerate(lengths)
        ]
        mine.append({**common, "samples": samples, "width": width})
    return asked, mine


def _trl(row: Row, quick: bool) -> tuple[str, str]:
    if python_of("trl") is None:
        return "", "trl is not installed: python -m bench.peers.setup trl"
    asked, mine = trl_cases(quick)
    ways = {"dapo": "token-mean", "grpo": "seq-mean-token-mean", "dr_grpo": "seq-mean-token-sum-norm"}
    with tempfile.TemporaryDirectory() as folder:
        # Qwen3's norms are float32 in transformers even where the model is float64; GPT-2's are not.
        exact = HubPolicy(_gpt2(Path(folder) / "gpt2"))
        for policy in (exact, OwnPolicy(bundled.path())):
            policy.module.double()
            try:
                found = _compared(policy, asked, mine, ways, Path(folder))
            except RuntimeError as error:
                return "", str(error)
            row.value = found if policy is exact else row.value
    return f"{row.value:.1e}", f"{len(mine)} batches in float64, tool tokens masked: " + ", ".join(
        f"{own['loss_type']}/{own['level']}" for own in mine
    ) + f"; a random GPT-2 on both sides. The bundled model in our code against transformers': {found:.1e}"


def _gpt2(folder: Path) -> Path:
    """A small random model whose code computes in one type throughout."""
    import shutil

    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(5)
    config = GPT2Config(
        vocab_size=1024, n_positions=128, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled.path() / name, folder)
    return folder


def _compared(
    policy: HubPolicy | OwnPolicy,
    asked: list[dict[str, Any]],
    mine: list[dict[str, Any]],
    ways: dict[str, Any],
    folder: Path,
) -> float:
    """The largest difference over all batches on one model."""
    for case, own in zip(asked, mine, strict=True):
        with torch.no_grad():
            case["old"] = own["old"] = policy.score(own["samples"]).logprobs + case["noise"]
    source, target = folder / "cases.pt", folder / "answers.pt"
    torch.save(asked, source)
    ask("trl", "trl_worker.py", "gradients", str(policy.folder), str(source), str(target))
    worst = 0.0
    for own, theirs in zip(mine, torch.load(target, weights_only=True), strict=True):
        config = LossConfig(
            ratio=own["level"], clip_low=0.2, clip_high=0.28, dual_clip=None, tis=None,
            aggregate=ways[own["loss_type"]], length=own["width"],
        )  # fmt: skip
        worst = max(worst, _difference(policy, own, config, theirs))
    return worst


def _difference(policy: Policy, own: dict[str, Any], config: LossConfig, theirs: dict[str, Any]) -> float:
    """Of the loss, and of any gradient relative to the largest."""
    policy.module.zero_grad()
    scored = policy.score(own["samples"])
    loss, _ = policy_loss(scored.logprobs, own["old"], own["advantages"], scored.mask, config, Total.of(scored.mask))
    loss.backward()  # type: ignore[no-untyped-call]
    grads = {name: p.grad for name, p in policy.module.named_parameters() if p.grad is not None}
    largest = max(float(grad.abs().max()) for grad in theirs["grads"].values())
    apart = max(float((grads[name] - grad).abs().max()) / largest for name, grad in theirs["grads"].items())
    return max(apart, abs(loss.item() - float(theirs["loss"])))
