"""Which rows of a step attend together, and to which slots of the cache: found once a step on the host, used in every layer.

Sequences of one row go together, by length. Rows of a sequence with several see all that was cached, and some of each other.
Sparse rows carry tables of where their tokens and compressed keys lie.
"""

# T rows of the step, S sequences, B sequences of a batch, Q rows of a chunk, R sparse rows, L tokens, P pages, N compressed keys,
# W of them that a draft's path completes, K tokens of one

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minicpm4.executors.torch.dense import length_buckets
from minicpm4.executors.torch.sparse import RowTokens
from minicpm4.model import PAGE_TOKENS, Step
from minicpm4.model.config import SparseConfig
from minicpm4.model.sparse import COARSE, compressed_place, is_sparse, num_compressed
from minicpm4.model.sparse_step import SparseStep, compressed_slots, places_per_page, plan_sparse
from minicpm4.model.step import set_bits

Where = slice | Tensor  # indices of an axis; a slice, which copies nothing, where they are consecutive


@dataclass(frozen=True)
class Batch:
    """Dense rows of sequences that have one row each. slots: [B, L], or [L] of a single sequence. sees_BL: None where they see all."""

    rows: Where
    slots: Where
    sees_BL: Tensor | None


@dataclass(frozen=True)
class Chunk:
    """Dense rows of a sequence that has several. cached: slots of what was there before, None for nothing. own: slots of the rows that they
    see of each other. sees_QL: of those; None where each sees those up to its own."""

    rows: Where
    cached: Where | None
    own: Where
    sees_QL: Tensor | None


@dataclass(frozen=True)
class KeySlots:
    """Where the compressed keys of sparse rows lie: common_N of all rows, then own_RN of each, or those that are means of the tokens in
    own_RWK. See `RowKeys`."""

    common_N: Where
    own_RN: Tensor | None = None
    own_RWK: Tensor | None = None


@dataclass(frozen=True)
class SparseRows:
    rows: Where
    positions_R: Tensor
    tokens: RowTokens
    fine: KeySlots
    coarse: KeySlots | None


@dataclass(frozen=True)
class PagedPlan:
    """slots: where the step's rows are written. compressed: those that the step completes; None where all attention is dense."""

    slots: Where
    groups: tuple[Batch | Chunk | SparseRows, ...]
    compressed: SparseStep | None


def plan_step(step: Step, sparse: SparseConfig | None, *, device: torch.device) -> PagedPlan:
    return Planner(step, sparse, device).plan()


class Planner:
    """Makes the plan of one step."""

    def __init__(self, step: Step, sparse: SparseConfig | None, device: torch.device) -> None:
        self.step, self.sparse, self.device = step, sparse, device
        never = np.zeros(len(step.tokens_T), bool)
        self.is_sparse_T = never if sparse is None else is_sparse(sparse, step.positions_T)

    def plan(self) -> PagedPlan:
        counts_S = np.diff(self.step.starts_S1)
        groups: list[Batch | Chunk | SparseRows] = []
        is_single_S = (counts_S == 1) & ~self.is_sparse_T[self.step.starts_S1[:-1].clip(max=len(self.is_sparse_T) - 1)]
        is_sparse_single_S = (counts_S == 1) & ~is_single_S
        groups += [self.batch(sequences) for sequences in self.buckets(is_single_S)]
        groups += [self.sparse_batch(sequences) for sequences in self.buckets(is_sparse_single_S)]
        for sequence in np.flatnonzero(counts_S > 1).tolist():
            groups += self.several_rows(sequence)
        return PagedPlan(self.where(self.step.slots_T), tuple(groups), self.new_compressed(counts_S))

    def new_compressed(self, counts_S: np.ndarray) -> SparseStep | None:
        """Rows of draft trees complete none: `copy_slots` makes those of the path that is kept."""
        if self.sparse is None:
            return None
        fresh_S = self.step.lengths_S - counts_S
        if self.step.ancestors_T is not None:
            are_trees_S = np.array([self.step.is_tree(sequence) for sequence in range(len(counts_S))])
            fresh_S = np.where(are_trees_S, self.step.lengths_S, fresh_S)
        return plan_sparse(self.sparse, self.step, fresh_S=fresh_S)

    def buckets(self, is_meant_S: np.ndarray) -> list[np.ndarray]:
        return length_buckets(np.where(is_meant_S, self.step.lengths_S, 0))

    def move(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.int64)).to(self.device)

    def where(self, indices: np.ndarray) -> Where:
        """A slice where they are consecutive."""
        first = int(indices[0]) if len(indices) else 0
        if np.array_equal(indices, np.arange(first, first + len(indices))):
            return slice(first, first + len(indices))
        return self.move(indices)

    def slots(self, sequence: int, indices: np.ndarray) -> np.ndarray:
        """Of a sequence's cached tokens."""
        slots: np.ndarray = self.step.pages_SP[sequence, indices // PAGE_TOKENS] * PAGE_TOKENS + indices % PAGE_TOKENS
        return slots

    def batch(self, sequences_B: np.ndarray) -> Batch:
        rows, lengths_B = self.where(self.step.starts_S1[sequences_B]), self.step.lengths_S[sequences_B]
        if len(sequences_B) == 1:
            return Batch(rows, self.where(self.slots(int(sequences_B[0]), np.arange(lengths_B[0]))), None)
        tokens_L = np.arange(lengths_B.max())
        kept_BL = np.minimum(tokens_L, lengths_B[:, None] - 1)  # behind a sequence's end its last token is read, and not seen
        slots_BL = self.slots(sequences_B[:, None], kept_BL)  # type: ignore[arg-type]
        sees_BL = None if lengths_B.min() == lengths_B.max() else torch.from_numpy(tokens_L < lengths_B[:, None]).to(self.device)
        return Batch(rows, self.move(slots_BL), sees_BL)

    def several_rows(self, sequence: int) -> list[Chunk | SparseRows]:
        rows = np.arange(*self.step.starts_S1[sequence : sequence + 2].tolist())
        start, is_tree = int(self.step.lengths_S[sequence]) - len(rows), self.step.is_tree(sequence)
        dense, sparse = rows[~self.is_sparse_T[rows]], rows[self.is_sparse_T[rows]]
        groups: list[Chunk | SparseRows] = []
        if len(dense):
            own = np.arange(start, start + (len(rows) if is_tree else len(dense)))
            sees_QL = self.paths(dense, count=len(rows)) if is_tree else None
            cached = self.where(self.slots(sequence, np.arange(start))) if start else None
            groups.append(Chunk(self.where(dense), cached, self.where(self.slots(sequence, own)), sees_QL))
        if len(sparse):
            groups.append(self.sparse_tree(sequence, sparse, start) if is_tree else self.sparse_chunk(sequence, sparse))
        return groups

    def paths(self, rows: np.ndarray, *, count: int) -> Tensor:
        """Which of the `count` rows of a tree are on the path to each of these, bool [Q, L]."""
        assert self.step.ancestors_T is not None, "the step has a tree"
        bits = self.step.ancestors_T[rows][:, None] >> np.arange(count, dtype=np.uint64)
        return torch.from_numpy((bits & np.uint64(1)).astype(bool)).to(self.device)

    def sparse_rows(self, rows: np.ndarray, tokens: RowTokens, keys: tuple[KeySlots, KeySlots | None]) -> SparseRows:
        return SparseRows(self.where(rows), self.move(self.step.positions_T[rows]), tokens, *keys)

    def of_both(self, find: object) -> tuple[KeySlots, KeySlots | None]:
        """find: gives the slots of compressed keys of that many times the size."""
        assert self.sparse is not None, "there are sparse rows"
        assert callable(find)
        return find(1), find(COARSE) if self.sparse.has_coarse_lse else None

    def sparse_chunk(self, sequence: int, rows: np.ndarray) -> SparseRows:
        assert self.sparse is not None, "there are sparse rows"
        rule, length, pages_P = self.sparse, int(self.step.lengths_S[sequence]), self.step.pages_SP[sequence]

        def find(times: int) -> KeySlots:
            return KeySlots(self.where(compressed_slots(rule, pages_P, num_tokens=length, times=times)))

        return self.sparse_rows(rows, RowTokens(self.move(pages_P[None])), self.of_both(find))

    def sparse_batch(self, sequences_B: np.ndarray) -> SparseRows:
        """One row of each sequence. Where a sequence has fewer compressed keys than another, it reads some of page 0, and sees none."""
        assert self.sparse is not None, "there are sparse rows"
        if len(sequences_B) == 1:
            return self.sparse_chunk(int(sequences_B[0]), self.step.starts_S1[sequences_B])
        rule, pages_BP = self.sparse, np.maximum(self.step.pages_SP[sequences_B], 0)

        def find(times: int) -> KeySlots:
            count = num_compressed(rule, int(self.step.lengths_S[sequences_B].max()), times=times)
            indices_N, places_N = compressed_place(rule, np.arange(count), times=times)
            slots_BN = pages_BP[:, indices_N] * places_per_page(rule, times=times) + places_N
            return KeySlots(slice(0, 0), own_RN=self.move(slots_BN))

        return self.sparse_rows(self.step.starts_S1[sequences_B], RowTokens(self.move(pages_BP)), self.of_both(find))

    def sparse_tree(self, sequence: int, rows: np.ndarray, start: int) -> SparseRows:
        """Blocks and compressed keys are those of each row's path: the ones that were complete before the tree come from the cache."""
        assert self.sparse is not None, "there are sparse rows"
        rule, pages_P, positions_R = self.sparse, self.step.pages_SP[sequence], self.step.positions_T[rows]
        tokens = RowTokens(self.move(pages_P[None]), start, self.move(self.path_slots(rows, start)))

        def find(times: int) -> KeySlots:
            before = num_compressed(rule, start, times=times)
            after = np.arange(before, num_compressed(rule, int(positions_R.max()) + 1, times=times))
            common = self.where(compressed_slots(rule, pages_P, num_tokens=start, times=times))
            size, stride = times * rule.kernel_size, times * rule.kernel_stride
            tokens_WK = after[:, None] * stride + np.arange(size)
            tokens_RWK = np.minimum(tokens_WK, positions_R[:, None, None])  # those of a key that the row does not see are its own
            return KeySlots(common, own_RWK=tokens.slots(self.move(tokens_RWK)) if len(after) else None)

        return self.sparse_rows(rows, tokens, self.of_both(find))

    def path_slots(self, rows: np.ndarray, start: int) -> np.ndarray:
        """Slots of the rows on the path to each of these, [R, L], 0 behind its end."""
        assert self.step.ancestors_T is not None, "the step has a tree"
        first, most = self.step.starts_S1[self.step.sequences_T[rows[0]]], int(self.step.positions_T[rows].max()) - start + 1
        slots_RL = np.zeros((len(rows), most), np.int64)
        for index, mask in enumerate(self.step.ancestors_T[rows].tolist()):
            path = first + set_bits(mask)
            slots_RL[index, : len(path)] = self.step.slots_T[path]
        return slots_RL
