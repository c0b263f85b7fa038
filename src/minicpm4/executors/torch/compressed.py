"""Compressed keys: a store of them beside the pages of a cache, and those of rows in the form that scores are made of."""

# R rows, N compressed keys, W made at once, K tokens of one, X places of a store, G kv heads, J query heads of a kv head, D head dim

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from minicpm4.model import ModelConfig
from minicpm4.model.config import SparseConfig
from minicpm4.model.sparse import COARSE, num_compressed
from minicpm4.model.sparse_step import NewCompressedKeys, SparseStep, places_per_page

WRITTEN_AT_ONCE = 256  # their tokens are gathered first


@dataclass(frozen=True)
class RowKeys:
    """The compressed keys of rows, in order, float32; a row sees those that end at or before it.

    common_NGD: the first ones, the same for all rows. own_RNGD: after them, each row's own; None where there are none.
    """

    common_NGD: Tensor
    own_RNGD: Tensor | None = None

    def of_rows(self, rows: slice) -> RowKeys:
        return RowKeys(self.common_NGD, None if self.own_RNGD is None else self.own_RNGD[rows])

    def products(self, q_RGJD: Tensor) -> Tensor:
        """q k / sqrt(D), [G, J, R, N]."""
        shape = (q_RGJD.shape[2], q_RGJD.shape[0])
        scores_GJRN = (q_RGJD.permute(1, 2, 0, 3).flatten(1, 2) @ self.common_NGD.permute(1, 2, 0)).unflatten(1, shape)
        if self.own_RNGD is not None:
            own_RGJN = q_RGJD @ self.own_RNGD.permute(0, 2, 3, 1)
            scores_GJRN = torch.cat((scores_GJRN, own_RGJN.permute(1, 2, 0, 3)), dim=-1)
        return scores_GJRN / q_RGJD.shape[3] ** 0.5


def compress(sparse: SparseConfig, keys_LGD: Tensor, *, times: int = 1) -> Tensor:
    """All compressed keys of a sequence, float32 [N, G, D]; times: COARSE for the coarse ones."""
    size, stride, count = times * sparse.kernel_size, times * sparse.kernel_stride, num_compressed(sparse, len(keys_LGD), times=times)
    if not count:
        return keys_LGD.new_empty((0, *keys_LGD.shape[1:]), dtype=torch.float32)
    return keys_LGD.float().unfold(0, size, stride)[:count].mean(dim=-1)


@dataclass(frozen=True)
class CompressedKeys:
    """Of every layer, float32 [layers, X, G, D], X places beside every page; coarse: None where the rule needs none."""

    sparse: SparseConfig
    fine: Tensor
    coarse: Tensor | None

    @classmethod
    def empty(cls, config: ModelConfig, sparse: SparseConfig, *, num_pages: int, device: torch.device) -> CompressedKeys:
        def store(times: int) -> Tensor:
            places = num_pages * places_per_page(sparse, times=times)
            return torch.zeros((config.num_layers, places, config.num_kv_heads, config.head_dim), device=device)

        return cls(sparse, store(1), store(COARSE) if sparse.has_coarse_lse else None)

    @property
    def stores(self) -> tuple[Tensor, ...]:
        return (self.fine,) if self.coarse is None else (self.fine, self.coarse)

    def write(self, layer: int, keys_XGD: Tensor, step: SparseStep) -> None:
        """Makes those that the step completes, from this layer's keys as they are stored."""
        write_means(self.fine[layer], keys_XGD, step.compressed)
        if self.coarse is not None and step.coarse is not None:
            write_means(self.coarse[layer], keys_XGD, step.coarse)


def write_means(store_XGD: Tensor, keys_XGD: Tensor, new: NewCompressedKeys) -> None:
    if not len(new.slots_W):
        return
    slots_W, tokens_WK = (torch.from_numpy(np.asarray(array, np.int64)).to(store_XGD.device) for array in (new.slots_W, new.tokens_WK))
    for slots, tokens in zip(slots_W.split(WRITTEN_AT_ONCE), tokens_WK.split(WRITTEN_AT_ONCE), strict=True):
        store_XGD[slots] = keys_XGD[tokens].float().mean(dim=1)


def score_blocks(
    sparse: SparseConfig, q_RGJD: Tensor, keys: tuple[RowKeys, RowKeys | None], *, positions_R: Tensor, num_blocks: int
) -> Tensor:
    """The largest share of the compressed keys that overlap a block, of those that the row sees: [R, G, B], B the first num_blocks."""
    fine, coarse = keys
    scores_GJRN = fine.products(q_RGJD)
    is_hidden_RN = hidden_keys(sparse, scores_GJRN.shape[-1], positions_R=positions_R)
    lse_GJR1 = masked_lse(scores_GJRN, is_hidden_RN)
    if coarse is not None:
        coarse_GJRN = coarse.products(q_RGJD)
        coarse_GJR1 = masked_lse(coarse_GJRN, hidden_keys(sparse, coarse_GJRN.shape[-1], positions_R=positions_R, times=COARSE))
        lse_GJR1 = torch.where(coarse_GJR1 == -torch.inf, lse_GJR1, coarse_GJR1)
    shares_GRN = (scores_GJRN - lse_GJR1).exp().masked_fill(is_hidden_RN, 0).sum(dim=1)
    before, per_block = sparse.kernel_size // sparse.kernel_stride - 1, sparse.compressed_per_block  # those that reach in from before
    after = num_blocks * per_block - shares_GRN.shape[-1]
    padded = functional.pad(shares_GRN, (before, max(0, after)))
    return padded.unfold(-1, before + per_block, per_block)[:, :, :num_blocks].amax(dim=-1).transpose(0, 1)


def hidden_keys(sparse: SparseConfig, count: int, *, positions_R: Tensor, times: int = 1) -> Tensor:
    """Which of the first `count` compressed keys hold a token after the row, bool [R, N]."""
    lasts_N = times * (torch.arange(count, device=positions_R.device) * sparse.kernel_stride + sparse.kernel_size) - 1
    return lasts_N > positions_R[:, None]


def masked_lse(scores_GJRN: Tensor, is_hidden_RN: Tensor) -> Tensor:
    """[G, J, R, 1]; -inf where nothing is seen."""
    return scores_GJRN.masked_fill(is_hidden_RN, -torch.inf).logsumexp(dim=-1, keepdim=True)
