"""Chooses a token from logits: processors, temperature, the likeliest few, one random number. Knows one request at a time."""

# V vocabulary, C candidates, the likeliest first

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from minicpm4.engine.logits import LogitsProcessor, processors_of
from minicpm4.engine.params import SamplingParams
from minicpm4.executors.base import BlockMaxima

TopIds = Callable[[int], np.ndarray]
FIRST_CANDIDATES = 64  # looked at before more are; nearly always enough


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of a chosen token's probability and of the likeliest tokens', by id, the likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class ChosenToken(NamedTuple):
    """A chosen token; logprobs where the request asked for them."""

    token: int
    logprobs: TokenLogprobs | None


class Sampler:
    """Chooses the tokens of one request. `choose` changes nothing, so that an interrupted step can be computed again; `accept`
    goes on to the next token. `fork` gives one that goes its own way, for drafted tokens."""

    def __init__(self, params: SamplingParams, prompt: Iterable[int]) -> None:
        self._params = params
        self._random = np.random.default_rng(params.seed) if params.temperature > 0 else None
        self._next_number = self._random.random() if self._random is not None else 0.0
        self._processors: list[LogitsProcessor] = processors_of(params, prompt)

    def choose(self, logits_V: np.ndarray, maxima: BlockMaxima | None = None) -> ChosenToken | None:
        """The next token; None where the logits hold no largest number, because the model's arithmetic broke.

        maxima: of these logits, if the executor has them: the same token, for a look at few of the logits.
        """
        p = self._params
        if not math.isfinite((logits_V if maxima is None else maxima.values).max()):
            return None
        edited_V = logits_V
        if self._processors:
            edited_V, maxima = logits_V.copy(), None
            for processor in self._processors:
                processor.apply(edited_V)
        is_greedy = p.temperature == 0
        token = likeliest_id(edited_V, maxima) if is_greedy else self._draw(edited_V, partial(top_ids, edited_V, maxima=maxima))
        return ChosenToken(token, None if p.logprobs is None else logprobs_of(logits_V, token, p.logprobs))

    def accept(self, token: int) -> None:
        """The token was taken; the next call of `choose` is for the one after it."""
        if self._random is not None:
            self._next_number = self._random.random()
        for processor in self._processors:
            processor.accept(token)

    def fork(self) -> Sampler:
        twin = copy.copy(self)
        twin._random = copy.deepcopy(self._random)
        twin._processors = [processor.fork() for processor in self._processors]
        return twin

    def _draw(self, logits_V: np.ndarray, top: TopIds) -> int:
        """One random number against the cumulated weights of the candidates, the likeliest first."""
        ids_C, weights_C, total = candidates(logits_V, self._params, top, share=self._next_number)
        cumulated_C = np.cumsum(weights_C)
        goal = self._next_number * (cumulated_C[-1] if total is None else total)
        return int(ids_C[min(int(np.searchsorted(cumulated_C, goal, side="right")), len(ids_C) - 1)])


def candidates(logits_V: np.ndarray, params: SamplingParams, top: TopIds, *, share: float) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Ids that top_k, top_p and min_p leave, the likeliest first, equals by id; and their weights, float64, the largest is 1.

    Without a filter these may be the first of all only: enough that their weights reach `share` of the total, which is then given.
    More and more of the likeliest are looked at, until the rest cannot matter. top: `top_ids` of these logits.
    """
    size = len(logits_V)
    limit = min(params.top_k or size, size)
    is_unfiltered = limit == size and params.top_p == 1 and params.min_p == 0
    total = (
        total_weight(logits_V, params.temperature, largest=logits_V[top(1)[0]])
        if is_unfiltered or (limit == size and params.top_p < 1)
        else None
    )
    count = limit if limit < size else min(size, FIRST_CANDIDATES)
    while True:
        ids_C = top(count)
        weights_C = weights_of(logits_V[ids_C] - logits_V[ids_C[0]], params.temperature)
        kept = kept_count(weights_C, params, total=total)
        if count == limit or kept < count:
            return ids_C[:kept], weights_C[:kept], total if is_unfiltered else None
        if is_unfiltered and total is not None and weights_C.sum() * (1 - 1e-9) > share * total:
            return ids_C, weights_C, total
        count = min(size, 16 * count)


def weights_of(below_C: np.ndarray, temperature: float) -> np.ndarray:
    """e^(logit / temperature) of logits that are given as distances below the largest, as float64."""
    with np.errstate(over="ignore"):  # the coldest temperatures give -inf, whose weight is 0
        weights_C: np.ndarray = np.exp(below_C.astype(np.float64) / temperature)
    return weights_C


def total_weight(logits_V: np.ndarray, temperature: float, *, largest: float) -> float:
    """The sum of all weights; in float32, whose rounding moves the edges of top_p by a millionth, and takes a tenth of the time."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.exp((logits_V - largest) * np.float32(min(1 / temperature, 1e30))).sum())


def top_ids(logits_V: np.ndarray, count: int, *, maxima: BlockMaxima | None = None) -> np.ndarray:
    """The ids of the `count` largest logits in order; equals by id, so that the choice does not hang on a sorting algorithm.

    maxima: only blocks are looked at whose largest logit is among the `count` largest of these: so many logits are as large.
    """
    if count == 1:
        return np.array([likeliest_id(logits_V, maxima)])
    if maxima is None or count >= len(maxima.values):
        ids, values = np.arange(len(logits_V)), logits_V
    else:
        blocks = np.flatnonzero(maxima.values >= nth_largest(maxima.values, count))
        ids = (blocks[:, None] * maxima.width + np.arange(maxima.width)).ravel()
        ids = ids[ids < len(logits_V)]
        values = logits_V[ids]
    if count < len(values):
        kept = np.flatnonzero(values >= nth_largest(values, count))
        ids, values = ids[kept], values[kept]
    return ids[np.argsort(-values, kind="stable")][:count]


def likeliest_id(logits_V: np.ndarray, maxima: BlockMaxima | None) -> int:
    """The first of the largest logits."""
    if maxima is None:
        return int(logits_V.argmax())
    start = int(maxima.values.argmax()) * maxima.width
    return start + int(logits_V[start : start + maxima.width].argmax())


def nth_largest(values: np.ndarray, n: int) -> float:
    return float(np.partition(values, len(values) - n)[len(values) - n])


def kept_count(weights_C: np.ndarray, params: SamplingParams, *, total: float | None) -> int:
    """How many of the candidates, the likeliest first, top_p and min_p keep; total: the sum of all weights, if more than theirs."""
    kept = len(weights_C)
    if params.top_p < 1:
        before_C = np.cumsum(weights_C) - weights_C
        kept = int((before_C < params.top_p * (weights_C.sum() if total is None else total)).sum())
    return max(1, min(kept, int((weights_C >= params.min_p * weights_C[0]).sum())))


def logprobs_of(logits_V: np.ndarray, token: int, num_top: int) -> TokenLogprobs:
    largest = logits_V.max()
    normalizer = float(largest) + float(np.log(np.exp(logits_V - largest, dtype=np.float64).sum()))
    top = top_ids(logits_V, num_top) if num_top else ()
    return TokenLogprobs(token, float(logits_V[token]) - normalizer, tuple((int(i), float(logits_V[i]) - normalizer) for i in top))
