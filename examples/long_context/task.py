"""Sequences that can only be predicted by looking far back: keys with their values, and runs of symbols, told first and asked later.

After a token that begins it, the first half tells facts, pairs of a key and a value, and runs of symbols, each some times in a row,
within a sentence that is said over and over; no symbol is in two of them. The second half says each once more, in another order; only
there is anything asked: at a repeated key its value, and at each symbol of a repeated run the next one. Knows nothing of models.
"""

# B sequences, T tokens of each, R rows that are asked

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BEGIN, FILLER, SYMBOLS = 0, range(1, 17), range(17, 81)
VOCAB_SIZE = SYMBOLS.stop
NOTHING, RETRIEVAL, COPY = range(3)  # what may be asked after a token


@dataclass(frozen=True)
class Task:
    """length: tokens of a sequence. facts: pairs of a key and a value. runs: of run_length symbols each, that are to be copied.
    times: how often in a row each of them is told; it is asked once."""

    length: int
    facts: int
    runs: int
    run_length: int
    times: int

    def __post_init__(self) -> None:
        assert self.num_symbols <= len(SYMBOLS), "no symbol is in two of them"
        assert self.length % 2 == 0, "the second half repeats what the first tells"
        assert self.times * self.num_symbols < self.length // 2, "what is told fits in half of a sequence, after its beginning"

    @property
    def num_symbols(self) -> int:
        return 2 * self.facts + self.runs * self.run_length


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
    symbols = random.choice(SYMBOLS, task.num_symbols, replace=False)
    facts, runs = symbols[: 2 * task.facts].reshape(-1, 2), symbols[2 * task.facts :].reshape(task.runs, task.run_length)
    items = [*((run, COPY) for run in runs), *((fact, RETRIEVAL) for fact in facts)]
    told, _ = spread([(np.tile(item, task.times), kind) for item, kind in items], task.length // 2 - 1, random)
    repeated, asked = spread(items, task.length // 2, random)
    return np.concatenate(([BEGIN], told, repeated)), np.concatenate((np.full(task.length // 2, NOTHING), asked))


def spread(items: Sequence[tuple[np.ndarray, int]], length: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The items whole, in random order and places of a filler that says its 16 tokens over and over; and what is asked after each
    token: within an item, its number."""
    start, num_filler = random.integers(len(FILLER)), length - sum(len(item) for item, _ in items)
    filler = FILLER.start + (start + np.arange(num_filler)) % len(FILLER)
    items = [items[i] for i in random.permutation(len(items))]
    cuts = np.sort(random.integers(num_filler + 1, size=len(items)))
    pieces = [(part, NOTHING) for part in np.split(filler, cuts)]
    pieces = [pieces[0], *(piece for pair in zip(items, pieces[1:], strict=True) for piece in pair)]
    asked = [np.where(np.arange(len(piece)) < len(piece) - 1, kind, NOTHING) for piece, kind in pieces]
    return np.concatenate([piece for piece, _ in pieces]), np.concatenate(asked)
