"""Chooses a token from logits: penalties, temperature, the likeliest few, one random number. Knows one request at a time."""

# V vocabulary, C candidates, the likeliest first

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from minicpm4.engine.params import SamplingParams
from minicpm4.executors.base import Peaks

FIRST_CANDIDATES = 64  # looked at before more are; nearly always enough


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of a chosen token's probability and of the likeliest tokens', by id, the likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class ChosenToken:
    """A chosen token; logprobs where the request asked for them."""

    token: int
    logprobs: TokenLogprobs | None


class Sampler:
    """Chooses the tokens of one request. `choose` changes nothing, so that an interrupted step can be computed again; `accept`
    goes on to the next token, and remembers this one for the penalties."""

    def __init__(self, params: SamplingParams, prompt: Iterable[int]) -> None:
        self._params = params
        self._random = np.random.default_rng(params.seed)
        self._next_number = self._random.random()
        self._seen = set(prompt) if params.repetition_penalty != 1 else set[int]()
        self._chosen: Counter[int] = Counter()

    def choose(self, logits_V: np.ndarray, peaks: Peaks | None = None) -> ChosenToken | None:
        """The next token; None where the logits hold no largest number, because the model's arithmetic broke.

        peaks: of these logits, if the executor has them: the same token, for a look at few of the logits.
        """
        p = self._params
        if not np.isfinite((logits_V if peaks is None else peaks.values).max()):
            return None
        if p.changes_logits:
            edited_V, edited_peaks = self._edit(logits_V), None
        else:
            edited_V, edited_peaks = logits_V, peaks
        token = first_of_largest(edited_V, edited_peaks) if p.temperature == 0 else self._draw(edited_V, edited_peaks)
        return ChosenToken(token, None if p.logprobs is None else logprobs_of(logits_V, token, p.logprobs))

    def accept(self, token: int) -> None:
        """The token was taken; the next call of `choose` is for the one after it."""
        self._next_number = self._random.random()
        if self._params.changes_logits:
            self._chosen[token] += 1
            self._seen.add(token)

    def _edit(self, logits_V: np.ndarray) -> np.ndarray:
        p, edited = self._params, logits_V.copy()
        if p.repetition_penalty != 1:
            seen = np.fromiter(self._seen, np.int64)
            values = edited[seen]
            edited[seen] = np.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
        for token, count in self._chosen.items():
            edited[token] -= p.presence_penalty + count * p.frequency_penalty
        for token, bias in p.logit_bias.items():
            edited[token] += bias
        return edited

    def _draw(self, logits_V: np.ndarray, peaks: Peaks | None) -> int:
        """One random number against the cumulated weights of the candidates, the likeliest first."""
        ids_C, weights_C, total = candidates(logits_V, self._params, peaks, share=self._next_number)
        cumulated_C = np.cumsum(weights_C)
        goal = self._next_number * (cumulated_C[-1] if total is None else total)
        return int(ids_C[min(int(np.searchsorted(cumulated_C, goal, side="right")), len(ids_C) - 1)])


def candidates(
    logits_V: np.ndarray, params: SamplingParams, peaks: Peaks | None, *, share: float
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Ids that top_k, top_p and min_p leave, the likeliest first, equals by id; and their weights, float64, the largest is 1.

    Without a filter these may be the first of all only: enough that their weights reach `share` of the total, which is then given.
    More and more of the likeliest are looked at, until the rest cannot matter.
    """
    size = len(logits_V)
    limit = min(params.top_k or size, size)
    is_unfiltered = limit == size and params.top_p == 1 and params.min_p == 0
    total = total_weight(logits_V, params.temperature, peaks) if is_unfiltered or (limit == size and params.top_p < 1) else None
    count = limit if limit < size else min(size, FIRST_CANDIDATES)
    while True:
        ids_C = sorted_ids(logits_V, count, peaks)
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


def total_weight(logits_V: np.ndarray, temperature: float, peaks: Peaks | None) -> float:
    """The sum of all weights; in float32, whose rounding moves the edges of top_p by a millionth, and takes a tenth of the time."""
    largest = (logits_V if peaks is None else peaks.values).max()
    with np.errstate(over="ignore", under="ignore"):
        return float(np.exp((logits_V - largest) * np.float32(min(1 / temperature, 1e30))).sum())


def sorted_ids(logits_V: np.ndarray, count: int, peaks: Peaks | None = None) -> np.ndarray:
    """The ids of the `count` largest logits in order; equals by id, so that the choice does not hang on a sorting algorithm.

    peaks: only blocks are looked at whose largest logit is among the `count` largest peaks: so many logits are as large as those.
    """
    ids = np.arange(len(logits_V)) if peaks is None or count >= len(peaks.values) else ids_of_best_blocks(peaks, count, len(logits_V))
    values = logits_V if len(ids) == len(logits_V) else logits_V[ids]
    if count < len(values):
        kept = np.flatnonzero(values >= np.partition(values, len(values) - count)[len(values) - count])
        ids, values = ids[kept], values[kept]
    return ids[np.argsort(-values, kind="stable")][:count]


def ids_of_best_blocks(peaks: Peaks, count: int, size: int) -> np.ndarray:
    """All ids, in order, of the blocks whose peaks are among the `count` largest, or equal to those."""
    blocks = np.flatnonzero(peaks.values >= np.partition(peaks.values, len(peaks.values) - count)[len(peaks.values) - count])
    ids: np.ndarray = (blocks[:, None] * peaks.width + np.arange(peaks.width)).ravel()
    return ids[ids < size]


def first_of_largest(logits_V: np.ndarray, peaks: Peaks | None) -> int:
    if peaks is None:
        return int(logits_V.argmax())
    start = int(peaks.values.argmax()) * peaks.width
    return start + int(logits_V[start : start + peaks.width].argmax())


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
    top = sorted_ids(logits_V, num_top) if num_top else ()
    return TokenLogprobs(token, float(logits_V[token]) - normalizer, tuple((int(i), float(logits_V[i]) - normalizer) for i in top))
