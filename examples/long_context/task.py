"""Sequences that can only be predicted by looking far back: keys with their values, and a run of symbols, told once and asked later.

The first half tells facts, pairs of a key and a value, and one run of symbols, among filler; no symbol is told twice. The second half
repeats them in another order; only there is anything asked: at a repeated key its value, and at each symbol of the repeated run the
next one. Everything else is noise. Knows nothing of models.
"""

# B sequences, T tokens of each, R rows that are asked

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FILLER, SYMBOLS = range(0, 32), range(32, 96)
VOCAB_SIZE = SYMBOLS.stop
NOTHING, RETRIEVAL, COPY = range(3)  # what may be asked after a token


@dataclass(frozen=True)
class Task:
    """length: tokens of a sequence. facts: pairs of a key and a value. run: symbols that are to be copied."""

    length: int
    facts: int
    run: int

    def __post_init__(self) -> None:
        assert 2 * self.facts + self.run <= len(SYMBOLS), "no symbol is told twice"
        assert self.length % 2 == 0, "the second half repeats what the first tells"
        assert 2 * self.facts + self.run <= self.length // 2, "what is told fits in half of a sequence"


@dataclass(frozen=True)
class Batch:
    """asked_R: rows, of all sequences one after the other, whose next token is asked: answers_R. is_copy_R: within the run."""

    tokens_BT: np.ndarray
    asked_R: np.ndarray
    answers_R: np.ndarray
    is_copy_R: np.ndarray


def make_batch(task: Task, batch_size: int, *, seed: Sequence[int]) -> Batch:
    """The same batch for the same seed."""
    random = np.random.default_rng(seed)
    tokens_BT, asked_BT = (np.stack(part) for part in zip(*(make_sequence(task, random) for _ in range(batch_size)), strict=True))
    asked_R = np.flatnonzero(asked_BT)
    return Batch(tokens_BT, asked_R, tokens_BT.reshape(-1)[asked_R + 1], asked_BT.reshape(-1)[asked_R] == COPY)


def make_sequence(task: Task, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and what is asked after each: NOTHING, RETRIEVAL or COPY."""
    symbols = random.choice(SYMBOLS, 2 * task.facts + task.run, replace=False)
    facts, run = symbols[task.run :].reshape(-1, 2), symbols[: task.run]
    items = [(run, COPY), *((fact, RETRIEVAL) for fact in facts)]
    told, _ = spread(items, task.length // 2, random)
    repeated, asked = spread(items, task.length // 2, random)
    return np.concatenate((told, repeated)), np.concatenate((np.full(len(told), NOTHING), asked))


def spread(items: Sequence[tuple[np.ndarray, int]], length: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The items whole, in random order and places, the rest filler; and what is asked after each token: within an item, its number."""
    filler = random.choice(FILLER, (length - sum(len(item) for item, _ in items), 1))
    pieces = [*items, *((token, NOTHING) for token in filler)]
    order = random.permutation(len(pieces))
    asked = [np.where(np.arange(len(piece)) < len(piece) - 1, kind, NOTHING) for piece, kind in pieces]
    return np.concatenate([pieces[i][0] for i in order]), np.concatenate([asked[i] for i in order])
