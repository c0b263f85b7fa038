"""Attention over the paged cache, for serving: without gradients, and in a step of one row a sequence without a loop over sequences."""

# T rows, X slots, L tokens, R sparse rows, N compressed keys, H query heads, G kv heads, J query heads of a kv head, D head dim

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from minicpm4.executors.torch.cache import PagedCache
from minicpm4.executors.torch.compressed import RowKeys
from minicpm4.executors.torch.dense import all_tokens, attend_batch, merge, own_rows
from minicpm4.executors.torch.ops import TorchStep
from minicpm4.executors.torch.plan import Batch, Chunk, KeySlots, PagedPlan, SparseRows, Where, plan_step
from minicpm4.executors.torch.sparse import attend_sparse
from minicpm4.model import Step


class PagedAttention:
    """See `ops.Attention`."""

    def __init__(self, cache: PagedCache) -> None:
        self.cache = cache

    def inputs(self, step: Step) -> TorchStep:
        """The step as `forward` takes it with this attention."""
        device = self.cache.keys.device
        sparse = None if self.cache.compressed is None else self.cache.compressed.sparse

        def move(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array.astype(np.int64)).to(device)

        plan = plan_step(step, sparse, device=device)
        return TorchStep(move(step.tokens_T), move(step.positions_T), move(step.logit_rows_R), plan)

    def attend(self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, *, layer: int, step: PagedPlan) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[step.slots], values[step.slots] = k_TGD.to(keys.dtype), v_TGD.to(values.dtype)
        if self.cache.compressed is not None and step.compressed is not None:
            self.cache.compressed.write(layer, keys, step.compressed)
        if len(step.groups) == 1 and isinstance(step.groups[0].rows, slice):  # all rows
            return self.attend_group(q_THD[step.groups[0].rows], step.groups[0], layer=layer)
        out_THD = torch.empty_like(q_THD)
        for group in step.groups:
            out_THD[group.rows] = self.attend_group(q_THD[group.rows], group, layer=layer)
        return out_THD

    def attend_group(self, q_THD: Tensor, group: Batch | Chunk | SparseRows, *, layer: int) -> Tensor:
        if isinstance(group, Batch):
            k, v = (x if x.ndim == 4 else x[None] for x in self.read(group.slots, layer=layer, dtype=q_THD.dtype))
            return attend_batch(q_THD, k, v, sees_BL=group.sees_BL)
        if isinstance(group, SparseRows):
            return self.attend_blocks(q_THD, group, layer=layer)
        own = own_rows(q_THD, *self.read(group.own, layer=layer, dtype=q_THD.dtype), sees_QL=group.sees_QL)
        if group.cached is None:
            return own[0]
        return merge(all_tokens(q_THD, *self.read(group.cached, layer=layer, dtype=q_THD.dtype)), own)

    def read(self, slots: Where, *, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values in these slots: where they lie, if they are consecutive and of that dtype."""
        return self.cache.keys[layer][slots].to(dtype), self.cache.values[layer][slots].to(dtype)

    def attend_blocks(self, q_RHD: Tensor, group: SparseRows, *, layer: int) -> Tensor:
        compressed, keys = self.cache.compressed, self.cache.keys[layer]
        assert compressed is not None, "sparse rows come with compressed keys"
        fine = row_keys(compressed.fine[layer], keys, group.fine)
        coarse = None
        if compressed.coarse is not None and group.coarse is not None:
            coarse = row_keys(compressed.coarse[layer], keys, group.coarse)
        q_RGJD = q_RHD.unflatten(1, (keys.shape[1], -1))
        cached = (keys, self.cache.values[layer], group.tokens)
        return attend_sparse(compressed.sparse, q_RGJD, cached, keys=(fine, coarse), positions_T=group.positions_R).flatten(1, 2)


def row_keys(store_NGD: Tensor, keys_XGD: Tensor, slots: KeySlots) -> RowKeys:
    own = None if slots.own_RN is None else store_NGD[slots.own_RN]
    if slots.own_RWK is not None:
        own = keys_XGD[slots.own_RWK].float().mean(dim=2)
    return RowKeys(store_NGD[slots.common_N], own)
