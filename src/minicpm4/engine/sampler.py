"""Chooses a token from logits: penalties, temperature, the likeliest few, one random number. Knows one request at a time."""

# V vocabulary, C candidates, the likeliest first

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from minicpm4.engine.params import SamplingParams

FIRST_CANDIDATES = 256  # sorted before anything larger is; nearly always enough for top_p and min_p


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

    def choose(self, logits_V: np.ndarray) -> ChosenToken | None:
        """The next token; None where the logits hold no largest number, because the model's arithmetic broke."""
        p = self._params
        if not np.isfinite(logits_V.max()):
            return None
        edited_V = self._edit(logits_V) if p.changes_logits else logits_V
        token = int(edited_V.argmax()) if p.temperature == 0 else self._draw(edited_V)
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

    def _draw(self, logits_V: np.ndarray) -> int:
        """One random number against the cumulated probabilities of the candidates, the likeliest first."""
        p = self._params
        with np.errstate(over="ignore"):  # the coldest temperatures give -inf, whose weight is 0
            weights_V = np.exp((logits_V - logits_V.max()).astype(np.float64) / p.temperature)
        candidates_C = likeliest(weights_V, p)
        cumulated_C = np.cumsum(weights_V[candidates_C])
        return int(candidates_C[np.searchsorted(cumulated_C, self._next_number * cumulated_C[-1], side="right")])


def likeliest(weights_V: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Ids that top_k, top_p and min_p leave, the likeliest first, equals by id; weights are unnormalized, the largest is 1."""
    limit = min(params.top_k or len(weights_V), len(weights_V))
    if limit == len(weights_V) and params.top_p == 1 and params.min_p == 0:
        return np.argsort(-weights_V, kind="stable")
    ids_C = sorted_ids(weights_V, min(limit, FIRST_CANDIDATES))
    kept = kept_count(weights_V[ids_C], params, total=weights_V.sum() if limit == len(weights_V) else None)
    if kept == len(ids_C) < limit or (limit < len(weights_V) and params.top_p < 1 and len(ids_C) < limit):
        ids_C = sorted_ids(weights_V, limit)
        kept = kept_count(weights_V[ids_C], params, total=None)
    return ids_C[:kept]


def sorted_ids(weights_V: np.ndarray, count: int) -> np.ndarray:
    """The ids of the `count` largest weights in order; equals by id, so that the choice does not hang on a sorting algorithm."""
    if count < len(weights_V):
        smallest = np.partition(weights_V, len(weights_V) - count)[len(weights_V) - count]
        ids = np.flatnonzero(weights_V >= smallest)
    else:
        ids = np.arange(len(weights_V))
    return ids[np.argsort(-weights_V[ids], kind="stable")][:count]


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
