"""How well answers are found: loss and accuracy of retrieval and of copying, on sequences that no training batch holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from examples.long_context.model import Parameters, logits_of
from examples.long_context.task import Task, make_batch
from minicpm4.model import ModelConfig
from minicpm4.model.config import SparseConfig

SEED = 1_000_000  # training batches have three numbers for a seed, these two
BATCH_SIZE = 4


@dataclass(frozen=True)
class Score:
    """loss: in nats, of all answers. retrieval, copy: shares of answers that were the likeliest token."""

    loss: float
    retrieval: float
    copy: float


def evaluate(config: ModelConfig, parameters: Parameters, task: Task, *, sparse: SparseConfig | None, num_sequences: int) -> Score:
    """The same sequences for everyone; whole batches of them."""
    losses, are_right, are_copies = [], [], []
    for index in range(num_sequences // BATCH_SIZE):
        batch = make_batch(task, BATCH_SIZE, seed=[SEED, index])
        answers_R = torch.from_numpy(batch.answers_R)
        with torch.no_grad():
            logits_RV = logits_of(config, parameters, batch.tokens_BT, rows_R=batch.asked_R, sparse=sparse)
        losses.append(cross_entropy(logits_RV, answers_R, reduction="none").numpy())
        are_right.append((logits_RV.argmax(dim=-1) == answers_R).numpy())
        are_copies.append(batch.is_copy_R)
    loss, is_right, is_copy = (np.concatenate(part) for part in (losses, are_right, are_copies))
    return Score(float(loss.mean()), float(is_right[~is_copy].mean()), float(is_right[is_copy].mean()))
