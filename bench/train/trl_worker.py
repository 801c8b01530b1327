"""Run by the peer's interpreter: TRL's GRPOTrainer, its gradients for given batches, or a whole training run.

trl_worker.py gradients MODEL CASES ANSWERS
trl_worker.py train MODEL SETTINGS.json        prints a line of JSON per step
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


def trainer_for(model: str, rows: list[dict[str, Any]], reward: Any, **settings: Any) -> GRPOTrainer:
    """A trainer on the CPU in float32 with everything that costs time and is not learning turned off."""
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-"),
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        gradient_checkpointing=False,
        disable_tqdm=True,
        disable_dropout=True,
        **settings,
    )
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    return GRPOTrainer(
        model=loaded,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def gradients(model: str, source: str, target: str) -> None:
    """Gradients of the trainer's own loss, in float64, for batches of token ids."""
    answers = []
    for case in torch.load(source, weights_only=False):
        trainer = trainer_for(
            model,
            [{"prompt": "x"}] * 8,
            lambda completions, **_: [0.0] * len(completions),
            per_device_train_batch_size=8,
            num_generations=8,
            loss_type=case["loss_type"],
            importance_sampling_level=case["level"],
            epsilon=case["clip_low"],
            epsilon_high=case["clip_high"],
            beta=0.0,
            max_completion_length=case["completion_ids"].shape[1],
        )
        net = trainer.model.double()
        net.train()
        trainer.current_gradient_accumulation_steps = 1
        batch = {name: case[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
        batch |= {"advantages": case["advantages"], "old_per_token_logps": case["old"]}
        batch["tool_mask"] = case["tool_mask"]
        batch["num_items_in_batch"] = (case["completion_mask"] * case["tool_mask"]).sum()
        loss = trainer._compute_loss(net, batch)
        loss.backward()
        answers.append(
            {"loss": loss.detach(), "grads": {n: p.grad for n, p in net.named_parameters() if p.grad is not None}}
        )
    torch.save(answers, target)


class Lines(TrainerCallback):
    """Prints the reward of every step and the seconds since the first."""

    def __init__(self, target: float, window: int) -> None:
        self.rewards: list[float] = []
        self.window = window
        self.began = time.monotonic()
        self.cpu = time.process_time()
        self.target = target

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "reward" in logs:
            line = {"step": state.global_step, "reward": logs["reward"]}
            line |= {"seconds": time.monotonic() - self.began, "cpu": time.process_time() - self.cpu}
            print(json.dumps(line), flush=True)
            self.rewards.append(logs["reward"])
            if len(self.rewards) >= self.window and sum(self.rewards[-self.window :]) / self.window >= self.target:
                control.should_training_stop = True


def train(model: str, path: str) -> None:
    """GRPO until the reward reaches its target."""
    given = json.loads(Path(path).read_text())
    torch.set_num_threads(given["threads"])
    wanted = {row["prompt"]: row["values"] for row in given["rows"]}

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [float(judge(given["task"], wanted[p], c)) for p, c in zip(prompts, completions, strict=True)]

    trainer = trainer_for(
        model,
        [{"prompt": row["prompt"]} for row in given["rows"]],
        reward,
        per_device_train_batch_size=given["prompts"] * given["members"],
        num_generations=given["members"],
        max_completion_length=given["tokens"],
        learning_rate=given["rate"],
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=given["warmup"],
        adam_beta2=0.95,
        max_steps=given["steps"],
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        epsilon=0.2,
        epsilon_high=0.28,
        loss_type="dapo",
        seed=given["seed"],
        shuffle_dataset=False,
        logging_steps=1,
        max_grad_norm=1.0,
        use_transformers_paged=False,
    )
    trainer.add_callback(Lines(given["target"], given["window"]))
    trainer.train()


def judge(task: str, values: list[str], completion: str) -> bool:
    """The verdict of the race's tasks, written again without this project's code."""
    text = re.sub(r"<think>.*?</think>", "", completion, flags=re.DOTALL)
    said = re.findall(r"\bis (\w+)\.", text) if task == "retrieval" else re.findall(r"\d+", text)[-1:]
    return said == values


if __name__ == "__main__":
    {"gradients": gradients, "train": train}[sys.argv[1]](*sys.argv[2:])
