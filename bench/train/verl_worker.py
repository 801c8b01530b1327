"""Run by the peer's interpreter: verL's advantages, losses and their gradients for the cases in a file."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig

ADVANTAGES = {
    "group": lambda rewards, mask, index: core_algos.compute_grpo_outcome_advantage(rewards, mask, index),
    "none": lambda rewards, mask, index: core_algos.compute_grpo_outcome_advantage(
        rewards, mask, index, norm_adv_by_std_in_grpo=False
    ),
    "rloo": lambda rewards, mask, index: core_algos.compute_rloo_outcome_advantage(rewards, mask, index),
}
LOSSES = {"token": "vanilla", "sequence": "gspo", "cispo": "cispo"}


def answer(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The peer's numbers for one case."""
    if case["kind"] == "advantages":
        rewards = torch.zeros_like(case["mask"])
        rewards[:, -1] = case["rewards"]
        return {"value": ADVANTAGES[case["normalise"]](rewards, case["mask"], np.array(case["groups"]))[0]}
    logprobs = case["logprobs"].clone().requires_grad_()
    if case["kind"] == "kl":
        value = core_algos.kl_penalty(logprobs, case["reference"], case["kl_kind"])
        return {"value": value.detach()}
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=case["clip_low"],
        clip_ratio_low=case["clip_low"],
        clip_ratio_high=case["clip_high"],
        clip_ratio_c=case["dual_clip"],
    )
    if case["length"]:
        config.global_batch_info["loss_scale_factor"] = case["length"]
    loss, _ = core_algos.get_policy_loss_fn(LOSSES[case["ratio"]])(
        case["old"], logprobs, case["advantages"], case["mask"], case["aggregate"], config, case["weights"]
    )
    loss.backward()
    return {"value": loss.detach(), "grad": logprobs.grad}


if __name__ == "__main__":
    source, target = sys.argv[1:3]
    torch.save([answer(case) for case in torch.load(source, weights_only=False)], target)
