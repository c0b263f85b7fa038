"""Attention in numpy, one row at a time: dense, and sparse as `model.sparse` and the paper say it."""

# T rows, L tokens of the sequence, C chosen tokens, G kv heads, J query heads of a kv head, D head dim

from __future__ import annotations

import numpy as np

from minicpm4.model import PAGE_TOKENS
from minicpm4.model.config import SparseConfig
from minicpm4.model.sparse import COARSE, compress, is_sparse, select_blocks


def attend_mixed(
    sparse: SparseConfig | None, q_TGJD: np.ndarray, cached: tuple[np.ndarray, np.ndarray], *, positions_T: np.ndarray
) -> np.ndarray:
    """Rows of one sequence, each sparse or dense as its position says. cached: the sequence's keys and values, [L, G, D] each."""
    if sparse is None:
        return attend_dense(q_TGJD, *cached, positions_T=positions_T)
    num_dense = int((~is_sparse(sparse, positions_T)).sum())  # they come first, since positions ascend
    length = int(positions_T[num_dense - 1]) + 1 if num_dense else 0
    dense = attend_dense(q_TGJD[:num_dense], *(x_LGD[:length] for x_LGD in cached), positions_T=positions_T[:num_dense])
    return np.concatenate((dense, attend_sparse(sparse, q_TGJD[num_dense:], cached, positions_T=positions_T[num_dense:])))


def attend_dense(q_TGJD: np.ndarray, k_LGD: np.ndarray, v_LGD: np.ndarray, *, positions_T: np.ndarray) -> np.ndarray:
    """softmax(q k / sqrt(D)) v over the tokens at or before each query's position; a row at a time, so that later ones are not touched."""
    out_TGJD = np.empty_like(q_TGJD)
    for row, position in enumerate(positions_T.tolist()):
        k_GLD, v_GLD = (x_LGD[: position + 1].transpose(1, 0, 2) for x_LGD in (k_LGD, v_LGD))
        out_TGJD[row] = attend_tokens(q_TGJD[row], k_GLD, v_GLD)
    return out_TGJD


def attend_tokens(q_JD: np.ndarray, k_CD: np.ndarray, v_CD: np.ndarray) -> np.ndarray:
    """softmax(q k / sqrt(D)) v; for several kv heads at once, their axis comes first."""
    scores_JC = q_JD @ k_CD.swapaxes(-1, -2) / np.float32(np.sqrt(q_JD.shape[-1]))
    out_JD: np.ndarray = softmax(scores_JC) @ v_CD
    return out_JD


def attend_sparse(
    sparse: SparseConfig, q_TGJD: np.ndarray, cached: tuple[np.ndarray, np.ndarray], *, positions_T: np.ndarray
) -> np.ndarray:
    """The same over the tokens of the blocks that each row and kv head chooses. Compressed keys are made anew at each call."""
    k_LGD, v_LGD = cached
    out_TGJD = np.empty_like(q_TGJD)
    if not len(positions_T):
        return out_TGJD
    compressed, coarse = compress(sparse, k_LGD), compress(sparse, k_LGD, times=COARSE) if sparse.has_coarse_lse else None
    for row, position in enumerate(positions_T.tolist()):
        blocks_GC = select_blocks(sparse, q_TGJD[row], compressed, position=position, coarse_NGD=coarse)
        for group, blocks in enumerate(blocks_GC):
            tokens_C = (blocks[:, None] * PAGE_TOKENS + np.arange(PAGE_TOKENS)).ravel()
            tokens_C = tokens_C[tokens_C <= position]
            out_TGJD[row, group] = attend_tokens(q_TGJD[row, group], k_LGD[tokens_C, group], v_LGD[tokens_C, group])
    return out_TGJD


def softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    weights: np.ndarray = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
    return weights / weights.sum(axis=-1, keepdims=True)
