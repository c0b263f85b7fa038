"""What changes logits before a token is chosen: penalties and bias. A mask of a grammar is one more of the same kind.

Processors run in this order: repetition penalty; presence and frequency penalties; bias; masks, which are last, so that nothing adds to
what they forbid. Temperature and top_k, top_p, min_p follow (`engine.sampler`).
"""

# V vocabulary

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from minicpm4.engine.params import SamplingParams


class LogitsProcessor(Protocol):
    """Changes the logits of one request, and follows its tokens."""

    def apply(self, logits_V: np.ndarray) -> None:
        """Changes float32 logits where they are; nothing else, so that an interrupted step can be computed again."""

    def accept(self, token: int) -> None:
        """The token was taken: what follows is about the one after it."""

    def fork(self) -> LogitsProcessor:
        """One that goes its own way from here on, for tokens that are drafted and may not stay."""


class Penalties:
    """The penalties of `SamplingParams`. Repetition counts tokens of the prompt too, the others those of the answer alone."""

    def __init__(self, params: SamplingParams, prompt: Iterable[int]) -> None:
        self._params = params
        self._seen = set(prompt) if params.repetition_penalty != 1 else set[int]()
        self._chosen: Counter[int] = Counter()

    def apply(self, logits_V: np.ndarray) -> None:
        p = self._params
        if p.repetition_penalty != 1:
            seen = np.fromiter(self._seen, np.int64)
            values = logits_V[seen]
            logits_V[seen] = np.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
        for token, count in self._chosen.items():
            logits_V[token] -= p.presence_penalty + count * p.frequency_penalty

    def accept(self, token: int) -> None:
        self._chosen[token] += 1
        self._seen.add(token)

    def fork(self) -> Penalties:
        twin = Penalties(self._params, ())
        twin._seen, twin._chosen = set(self._seen), Counter(self._chosen)
        return twin


class Bias:
    """The logit_bias of `SamplingParams`."""

    def __init__(self, params: SamplingParams) -> None:
        self._tokens = np.fromiter(params.logit_bias, np.int64)
        self._values = np.fromiter(params.logit_bias.values(), np.float32)

    def apply(self, logits_V: np.ndarray) -> None:
        logits_V[self._tokens] += self._values

    def accept(self, token: int) -> None:
        """A bias stays what it is."""

    def fork(self) -> Bias:
        return self


def processors_of(params: SamplingParams, prompt: Iterable[int]) -> list[LogitsProcessor]:
    """Those that the parameters ask for, in order; none for most requests."""
    processors: list[LogitsProcessor] = []
    if params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty:
        processors.append(Penalties(params, prompt))
    if params.logit_bias:
        processors.append(Bias(params))
    return processors
