"""What sparse attention needs to know of a step beside the step itself, in flat arrays made once on the host for all layers.

A matter of positions and pages alone: no tensors, and nothing that depends on what is selected. Every executor that keeps
compressed keys beside its pages can use it as it is, or pad it to the sizes of a graph.
"""

# T rows, S sequences, P pages of a sequence, W compressed keys that the step completes, K tokens of one, N compressed keys of a sequence

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm4.model.config import SparseConfig
from minicpm4.model.sparse import COARSE, compressed_place, is_sparse, num_compressed
from minicpm4.model.step import PAGE_TOKENS, Step


def places_per_page(sparse: SparseConfig, *, times: int = 1) -> int:
    """Compressed keys that end in a page, at most: the size of the store beside it."""
    return max(1, sparse.compressed_per_block // times)


@dataclass(frozen=True)
class NewCompressedKeys:
    """Compressed keys whose last token the step writes; they are made after its keys were stored.

    slots_W: where each is kept: page id * places_per_page + place. tokens_WK: the cache slots of the keys that it is the mean of.
    """

    slots_W: np.ndarray
    tokens_WK: np.ndarray


@dataclass(frozen=True)
class SparseStep:
    """num_dense_S: how many of each sequence's rows are dense; they come first, the rest is sparse. coarse: None if never asked for."""

    num_dense_S: np.ndarray
    compressed: NewCompressedKeys
    coarse: NewCompressedKeys | None


def plan_sparse(sparse: SparseConfig, step: Step, *, fresh_S: np.ndarray | None = None) -> SparseStep:
    """fresh_S: of each sequence the token from which on its compressed keys are made; the first of its rows unless given."""
    is_dense_T = ~is_sparse(sparse, step.positions_T)
    return SparseStep(
        num_dense_S=np.bincount(step.sequences_T[is_dense_T], minlength=len(step.lengths_S)),
        compressed=new_compressed_keys(sparse, step, fresh_S=fresh_S),
        coarse=new_compressed_keys(sparse, step, fresh_S=fresh_S, times=COARSE) if sparse.has_coarse_lse else None,
    )


def new_compressed_keys(sparse: SparseConfig, step: Step, *, fresh_S: np.ndarray | None = None, times: int = 1) -> NewCompressedKeys:
    """times: COARSE for the coarse ones."""
    size, stride = times * sparse.kernel_size, times * sparse.kernel_stride
    if fresh_S is None:
        lasts_W, sequences_W = step.positions_T, step.sequences_T
    else:
        counts_S = step.lengths_S - fresh_S
        sequences_W = np.repeat(np.arange(len(counts_S)), counts_S)
        lasts_W = np.arange(counts_S.sum()) + np.repeat(step.lengths_S - np.cumsum(counts_S), counts_S)
    is_end_W = (lasts_W + 1 >= size) & ((lasts_W + 1 - size) % stride == 0)
    sequences_W, lasts_W = sequences_W[is_end_W], lasts_W[is_end_W]
    positions_WK = lasts_W[:, None] + np.arange(1 - size, 1)
    places_W = lasts_W % PAGE_TOKENS // stride
    return NewCompressedKeys(
        slots_W=step.pages_SP[sequences_W, lasts_W // PAGE_TOKENS] * places_per_page(sparse, times=times) + places_W,
        tokens_WK=step.pages_SP[sequences_W[:, None], positions_WK // PAGE_TOKENS] * PAGE_TOKENS + positions_WK % PAGE_TOKENS,
    )


def compressed_slots(sparse: SparseConfig, pages_P: np.ndarray, *, num_tokens: int, times: int = 1) -> np.ndarray:
    """Where the compressed keys of a sequence's first num_tokens tokens are kept, in their order, int [N]."""
    compressed_N = np.arange(num_compressed(sparse, num_tokens, times=times))
    indices_N, places_N = compressed_place(sparse, compressed_N, times=times)
    return pages_P[indices_N] * places_per_page(sparse, times=times) + places_N
