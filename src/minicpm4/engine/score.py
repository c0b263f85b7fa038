"""How likely the model finds tokens that are given: log-probabilities of many positions. Knows one sequence and an executor, no text."""

# N tokens that are scored, V vocabulary

from __future__ import annotations

from collections.abc import Sequence as Sized
from dataclasses import dataclass, replace

import numpy as np

from minicpm4.engine.scheduler import Part, Sequence, build_step
from minicpm4.executors import Executor
from minicpm4.model import pages_for

SCORED_ROWS = 256  # of one step: their logits are in memory together, 75 MB for MiniCPM4's vocabulary


@dataclass(frozen=True)
class Scores:
    """logprobs_N: natural logarithms of each scored token's probability, given all tokens before it, float64; NaN where the model's
    arithmetic broke. likeliest_N: the token that was thought likeliest in its place."""

    logprobs_N: np.ndarray
    likeliest_N: np.ndarray


def score_tokens(executor: Executor, tokens: Sized[int], *, pages: Sized[int], first: int = 1, step_tokens: int = SCORED_ROWS) -> Scores:
    """Scores tokens[first:]; 1 <= first < len(tokens). The tokens before are context, whose logits nobody computes.

    pages: of the cache, for all tokens but the last; nobody else's, and the caller's again after. step_tokens: the most of one step.
    """
    assert 1 <= first < len(tokens), f"tokens {first} to {len(tokens)} are to be scored"
    sequence = Sequence([], list(tokens))
    logprobs, likeliest = list[np.ndarray](), list[np.ndarray]()
    while sequence.num_waiting > 1:  # nothing follows the last token
        start = sequence.num_cached
        count = min(step_tokens, SCORED_ROWS, sequence.num_waiting - 1)
        sequence.pages = list(pages[: pages_for(start + count)])
        wanted_R = np.arange(min(count, max(0, first - 1 - start)), count, dtype=np.int32)
        logits_RV = executor.run(replace(build_step([Part(sequence, count, is_prompt=True, is_complete=False)]), wanted_R=wanted_R))
        if len(wanted_R):
            logprobs.append(logprobs_of_targets(logits_RV, np.array(tokens)[start + 1 + wanted_R]))
            likeliest.append(logits_RV.argmax(axis=-1))
        sequence.num_cached += count
    return Scores(np.concatenate(logprobs), np.concatenate(likeliest))


def logprobs_of_targets(logits_RV: np.ndarray, targets_R: np.ndarray) -> np.ndarray:
    """The natural logarithm of one token's probability in each row, float64 [R]."""
    above_RV = logits_RV - logits_RV.max(axis=-1, keepdims=True)
    spread_R = np.log(np.exp(above_RV).sum(axis=-1, dtype=np.float64))
    logprobs_R: np.ndarray = above_RV[np.arange(len(targets_R)), targets_R] - spread_R
    return logprobs_R
