"""How likely the model finds tokens that are given: log-probabilities of many positions. Knows one sequence and an executor, no text."""

# N tokens that are scored, V vocabulary

from __future__ import annotations

from collections.abc import Sequence as Sized
from dataclasses import dataclass

import numpy as np

from minicpm4.executors import Executor
from minicpm4.model import Segment, make_step

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
    logprobs, likeliest = list[np.ndarray](), list[np.ndarray]()
    end = len(tokens) - 1  # nothing follows the last token
    for start in range(0, end, min(step_tokens, SCORED_ROWS)):
        chunk = tokens[start : min(end, start + min(step_tokens, SCORED_ROWS))]
        num_logits = min(len(chunk), max(0, start + len(chunk) + 1 - first))
        segment = Segment(tokens=chunk, start=start, pages=pages, num_logits=num_logits, numerics=executor.prompt_numerics)
        logits_RV = executor.run(make_step([segment])).logits
        if num_logits:
            last = start + len(chunk) + 1
            logprobs.append(logprobs_of_targets(logits_RV, np.array(tokens[last - num_logits : last])))
            likeliest.append(logits_RV.argmax(axis=-1))
    return Scores(np.concatenate(logprobs), np.concatenate(likeliest))


def logprobs_of_targets(logits_RV: np.ndarray, targets_R: np.ndarray) -> np.ndarray:
    """The natural logarithm of one token's probability in each row, float64 [R]."""
    above_RV = logits_RV - logits_RV.max(axis=-1, keepdims=True)
    spread_R = np.log(np.exp(above_RV).sum(axis=-1, dtype=np.float64))
    logprobs_R: np.ndarray = above_RV[np.arange(len(targets_R)), targets_R] - spread_R
    return logprobs_R
