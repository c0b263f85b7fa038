"""The arrays of a traced step: padded to one of few sizes, so that few graphs serve all steps.

Knows sizes, and what padding is; does not know what is computed.
"""

# T padded rows, R padded wanted rows, W pages of the longest sequence that there may be, K tokens of a kernel

from __future__ import annotations

from dataclasses import dataclass, fields

import mindspore as ms
import numpy as np
from mindspore import Tensor

from minicpm4.model import PAGE_TOKENS, Step, pages_for
from minicpm4.model.config import SparseConfig
from minicpm4.model.sparse_step import new_kernels, places_per_page, sequences_of_rows

SIZES = (1, 8, 64)  # padded numbers of rows, below the most that a step may have


@dataclass(frozen=True)
class Rows:
    """An array [rows, columns], or [rows] of a step. Only the first `count` (int32 [1]) rows mean anything."""

    values: Tensor
    count: Tensor


@dataclass(frozen=True)
class GraphStep:
    """A step inside a graph; see `PaddedStep`."""

    tokens_T: Rows
    positions_T: Rows
    wanted_R: Rows
    slots_T: Tensor
    starts_T1: Tensor
    lengths_T: Tensor
    pages_TW: Tensor
    sequences_T: Tensor
    kernel_slots_T: Tensor
    kernel_tokens_TK: Tensor

    @classmethod
    def of(cls, *tensors: Tensor) -> GraphStep:
        """From what `PaddedStep.tensors` gives."""
        tokens, positions, wanted, num_tokens, num_wanted, *others = tensors
        return cls(Rows(tokens, num_tokens), Rows(positions, num_tokens), Rows(wanted, num_wanted), *others)


@dataclass(frozen=True)
class PaddedStep:
    """A step's arrays, int32, in the order in which a graph takes them; see `model.step.Step` and `model.sparse_step.NewKernels`.

    num_tokens, num_wanted: how many are real, [1] each. There are as many sequences as rows: those past the step's have no tokens.
    sequences_T: the sequence that a row belongs to. kernel_slots_T, kernel_tokens_TK: the kernels that the step completes. What
    padding rows and kernels would write goes to the page after the last.
    """

    tokens_T: np.ndarray
    positions_T: np.ndarray
    wanted_R: np.ndarray
    num_tokens: np.ndarray
    num_wanted: np.ndarray
    slots_T: np.ndarray
    starts_T1: np.ndarray
    lengths_T: np.ndarray
    pages_TW: np.ndarray
    sequences_T: np.ndarray
    kernel_slots_T: np.ndarray
    kernel_tokens_TK: np.ndarray

    def tensors(self) -> list[Tensor]:
        return [Tensor(getattr(self, field.name), ms.int32) for field in fields(self)]


@dataclass(frozen=True)
class Padder:
    """What steps are padded to. max_rows: the most that a step may have. num_pages: of the cache."""

    max_rows: int
    num_pages: int
    context_length: int
    sparse: SparseConfig | None

    @property
    def max_pages(self) -> int:
        """Of a sequence, W."""
        return pages_for(self.context_length)

    def size(self, count: int) -> int:
        """The smallest size that holds so many rows."""
        return next((size for size in SIZES if count <= size < self.max_rows), self.max_rows)

    def pad(self, step: Step) -> PaddedStep:
        rows = self.size(len(step.tokens_T))
        pages_TW = np.zeros((rows, self.max_pages), np.int32)
        pages_TW[: len(step.pages_SP), : step.pages_SP.shape[1]] = step.pages_SP[:, : self.max_pages]
        kernel_slots, kernel_tokens = self.kernels(step, rows)
        return PaddedStep(
            tokens_T=padded(step.tokens_T, rows),
            positions_T=padded(step.positions_T, rows),
            wanted_R=padded(step.wanted_R, self.size(len(step.wanted_R))),
            num_tokens=np.array([len(step.tokens_T)], np.int32),
            num_wanted=np.array([len(step.wanted_R)], np.int32),
            slots_T=padded(step.slots_T, rows, fill=self.num_pages * PAGE_TOKENS),
            starts_T1=padded(step.starts_S1, rows + 1, fill=len(step.tokens_T)),
            lengths_T=padded(step.lengths_S, rows),
            pages_TW=pages_TW,
            sequences_T=padded(sequences_of_rows(step), rows),
            kernel_slots_T=kernel_slots,
            kernel_tokens_TK=kernel_tokens,
        )

    def kernels(self, step: Step, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """A row completes at most one."""
        if self.sparse is None:
            return np.zeros(rows, np.int32), np.zeros((rows, 1), np.int32)
        new = new_kernels(self.sparse, step)
        tokens_TK = np.full((rows, self.sparse.kernel_size), self.num_pages * PAGE_TOKENS, np.int32)
        tokens_TK[: len(new.tokens_WK)] = new.tokens_WK
        return padded(new.slots_W, rows, fill=self.num_pages * places_per_page(self.sparse)), tokens_TK


def padded(values: np.ndarray, size: int, *, fill: int = 0) -> np.ndarray:
    out = np.full(size, fill, np.int32)
    out[: len(values)] = values
    return out
