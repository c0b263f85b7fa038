"""A step's arrays, padded to one of few sizes, so that few graphs serve all steps.

Knows sizes, and what padding is; does not know what is computed.
"""

# T padded rows, R padded rows of logits, W pages of the longest sequence that there may be

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from mindspore import Tensor

from minicpm4.executors.mindspore.graph import Rows
from minicpm4.model import PAGE_TOKENS, Step

SIZES = (1, 8, 64)  # padded numbers of rows, below the most that a step may have


@dataclass(frozen=True)
class PaddedStep:
    """A step's arrays, int32, and how many of them are real; see `model.step.Step`. A graph's inputs have these names, in this order.

    num_tokens, num_logits: how many are real, [1] each. There are as many sequences as rows: those past the step's have no tokens.
    slots_T: of padding rows, the first of the page after the cache's last. sequences_T: the sequence that a row belongs to.
    """

    tokens_T: np.ndarray
    positions_T: np.ndarray
    logit_rows_R: np.ndarray
    num_tokens: np.ndarray
    num_logits: np.ndarray
    slots_T: np.ndarray
    starts_T1: np.ndarray
    lengths_T: np.ndarray
    pages_TW: np.ndarray
    sequences_T: np.ndarray

    def tensors(self) -> list[Tensor]:
        return [Tensor(getattr(self, name)) for name in INPUTS]

    @property
    def size(self) -> tuple[int, int]:
        """Padded rows, and padded rows of logits."""
        return len(self.tokens_T), len(self.logit_rows_R)


INPUTS = tuple(field.name for field in fields(PaddedStep))


@dataclass(frozen=True)
class NamedStep:
    """What `forward` reads of a step, as names; operations mention the other inputs by theirs.

    has_past: whether rows may attend to tokens of earlier steps.
    """

    tokens_T: Rows
    positions_T: Rows
    logit_rows_R: Rows
    has_past: bool

    @classmethod
    def of(cls, num_rows: int, num_logits: int, *, has_past: bool) -> NamedStep:
        tokens, positions = (Rows(name, num_rows, 1, "num_tokens") for name in ("tokens_T", "positions_T"))
        return cls(tokens, positions, Rows("logit_rows_R", num_logits, 1, "num_logits"), has_past)


@dataclass(frozen=True)
class Padder:
    """What steps are padded to. max_rows: the most that a step may have. max_pages: of a sequence, W. num_pages: of the cache."""

    max_rows: int
    max_pages: int
    num_pages: int

    def size(self, count: int) -> int:
        """The smallest size that holds so many rows."""
        return next((size for size in SIZES if count <= size < self.max_rows), self.max_rows)

    def pad(self, step: Step) -> PaddedStep:
        rows = self.size(len(step.tokens_T))
        pages_TW = np.zeros((rows, self.max_pages), np.int32)
        width = min(self.max_pages, step.pages_SP.shape[1])
        pages_TW[: len(step.pages_SP), :width] = np.maximum(step.pages_SP[:, :width], 0)
        return PaddedStep(
            tokens_T=padded(step.tokens_T, rows),
            positions_T=padded(step.positions_T, rows),
            logit_rows_R=padded(step.logit_rows_R, self.size(len(step.logit_rows_R))),
            num_tokens=np.array([len(step.tokens_T)], np.int32),
            num_logits=np.array([len(step.logit_rows_R)], np.int32),
            slots_T=padded(step.slots_T, rows, fill=self.num_pages * PAGE_TOKENS),
            starts_T1=padded(step.starts_S1, rows + 1, fill=len(step.tokens_T)),
            lengths_T=padded(step.lengths_S, rows),
            pages_TW=pages_TW,
            sequences_T=padded(step.sequences_T, rows),
        )


def padded(values: np.ndarray, size: int, *, fill: int = 0) -> np.ndarray:
    out = np.full(size, fill, np.int32)
    out[: len(values)] = values
    return out
