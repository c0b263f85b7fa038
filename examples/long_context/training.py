"""The training loop: AdamW at muP's rates, warm-up, stable, decay; a log of one row a step, and checkpoints to go on from.

A run that was killed goes on from its last checkpoint to the same bytes: batches are a matter of seed and step alone. Knows neither
what stages there are nor what is done with the result.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from examples.long_context.model import Parameters, logits_of
from examples.long_context.task import Task, make_batch
from minicpm4.errors import ConfigError
from minicpm4.model import ModelConfig
from minicpm4.model.config import SparseConfig
from minicpm4.model.parameters import EMBEDDING, HEAD

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
WEIGHT_DECAY, BETAS, MAX_GRADIENT = 0.1, (0.9, 0.95), 1.0
FINAL_RATE = 0.05  # of the stable one
PROGRESS_STEPS = 10


@dataclass(frozen=True)
class Stage:
    """name: its folder's. tasks: one a step, in turn. start: the stage whose weights it begins with, None for random ones. sparse: the
    rule of attention, None for dense. tokens: of a step, in as many whole sequences as fit. rate: the stable learning rate of embeddings,
    norms and head; hidden matrices' is smaller by muP. warmup, decay: steps."""

    name: str
    tasks: tuple[Task, ...]
    start: str | None
    sparse: SparseConfig | None
    steps: int
    tokens: int
    rate: float
    warmup: int
    decay: int
    save_every: int = 50


def rate_factor(stage: Stage, step: int) -> float:
    """Warm-up, stable, decay, as MiniCPM4's public training code has it: the decay halves on its way and is shifted to end at its floor."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    share = max(0.0, (step + 1 - (stage.steps - stage.decay)) / stage.decay)
    return FINAL_RATE + (2 * math.pow(0.5, share) - 1) * (1 - FINAL_RATE)


def make_optimizer(config: ModelConfig, parameters: Parameters, rate: float) -> torch.optim.AdamW:
    """Groups hold their stable rates as `stable`; the optimizer's own rate is set at every step."""
    norms = [value for value in parameters.values() if value.ndim == 1]
    ends = [value for name, value in parameters.items() if name in (EMBEDDING, HEAD)]
    hidden = [value for name, value in parameters.items() if value.ndim == 2 and name not in (EMBEDDING, HEAD)]
    groups = [
        {"params": norms, "stable": rate, "weight_decay": 0.0},
        {"params": ends, "stable": rate, "weight_decay": WEIGHT_DECAY},
        {"params": hidden, "stable": rate / config.logit_divisor, "weight_decay": WEIGHT_DECAY},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=BETAS, eps=1e-8)


def train(config: ModelConfig, stage: Stage, parameters: Parameters, *, seed: int, folder: Path) -> None:
    """Trains the parameters in place, from the stage's last checkpoint in the folder if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(config, parameters, stage.rate)
    start = restore(folder, recipe(config, stage, seed), parameters, optimizer=optimizer)
    keep_rows(folder / LOG, start)
    with open(folder / LOG, "a") as log:
        for step in range(start, stage.steps):
            row = train_step(config, stage, parameters, optimizer=optimizer, seed=seed, step=step)
            log.write(json.dumps({"step": step, **row}) + "\n")
            if (step + 1) % stage.save_every == 0 or step + 1 == stage.steps:
                log.flush()
                save(folder, recipe(config, stage, seed), parameters, optimizer=optimizer, step=step + 1)
            if (step + 1) % PROGRESS_STEPS == 0 or step + 1 == stage.steps:
                show_progress(f"seed {seed}, {stage.name}: step {step + 1} of {stage.steps}", row, is_last=step + 1 == stage.steps)


def train_step(
    config: ModelConfig, stage: Stage, parameters: Parameters, *, optimizer: torch.optim.Optimizer, seed: int, step: int
) -> dict[str, float]:
    """One batch, of which every token is to be predicted; the row of the log. answers_loss, accuracy: of answers. seconds: processors'."""
    began, task = time.process_time(), stage.tasks[step % len(stage.tasks)]
    batch = make_batch(task, stage.tokens // task.length, seed=[seed, task.length, step])
    rows_R = np.arange(batch.tokens_BT.size).reshape(batch.tokens_BT.shape)[:, :-1].reshape(-1)  # what has a next token
    is_asked_R, next_R = torch.from_numpy(np.isin(rows_R, batch.asked_R)), torch.from_numpy(batch.tokens_BT.reshape(-1)[rows_R + 1])
    logits_RV = logits_of(config, parameters, batch.tokens_BT, rows_R=rows_R, sparse=stage.sparse)
    losses_R = cross_entropy(logits_RV, next_R, reduction="none")
    loss = losses_R.mean()
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_GRADIENT, error_if_nonfinite=True)
    factor = rate_factor(stage, step)
    for group in optimizer.param_groups:
        group["lr"] = factor * group["stable"]
    optimizer.step()
    is_right_R = logits_RV.argmax(dim=-1) == next_R
    return {
        "loss": loss.item(),
        "answers_loss": losses_R[is_asked_R].mean().item(),
        "accuracy": is_right_R[is_asked_R].float().mean().item(),
        "rate": factor * stage.rate,
        "gradient_norm": norm.item(),
        "seconds": time.process_time() - began,
    }


def recipe(config: ModelConfig, stage: Stage, seed: int) -> str:
    """Everything that the result depends on; a checkpoint of another recipe is not gone on from."""
    return f"{config} {stage} seed={seed}"


def save(folder: Path, made_by: str, parameters: Parameters, *, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Under its name when it is whole."""
    unfinished = folder / f"{CHECKPOINT}.partial"
    values = {name: value.detach() for name, value in parameters.items()}
    torch.save({"recipe": made_by, "step": step, "parameters": values, "optimizer": optimizer.state_dict()}, unfinished)
    unfinished.replace(folder / CHECKPOINT)


def restore(folder: Path, made_by: str, parameters: Parameters, *, optimizer: torch.optim.Optimizer) -> int:
    """The step to go on with; 0 where nothing was saved. ConfigError where what was saved is another recipe's."""
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    if saved["recipe"] != made_by:
        raise ConfigError(f"{path} is a checkpoint of another recipe", hint="name another --folder, or delete this one")
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(saved["parameters"][name])
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])


def keep_rows(log: Path, count: int) -> None:
    """Drops the rows of steps that will be computed again."""
    if log.exists():
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:count]))


def show_progress(what: str, row: dict[str, float], *, is_last: bool) -> None:
    answers = f"of answers {row['answers_loss']:.3f}, {100 * row['accuracy']:.1f} % right"
    line = f"{what}, loss {row['loss']:.3f}, {answers}, {row['seconds']:.2f} s a step"
    print(f"\r{line:<100}", end="\n" if is_last else "", file=sys.stderr, flush=True)
