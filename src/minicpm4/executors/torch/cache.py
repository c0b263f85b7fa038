"""The paged cache: keys and values of every layer, and compressed keys beside the pages where attention may be sparse."""

# X slots, P pages, G kv heads, D head dim

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minicpm4.executors.torch.compressed import CompressedKeys
from minicpm4.model import PAGE_TOKENS, ModelConfig
from minicpm4.model.config import SparseConfig
from minicpm4.model.sparse_step import SparseStep


@dataclass(frozen=True)
class PagedCache:
    """keys, values: [layers, P * PAGE_TOKENS, G, D] in the storage dtype. compressed: None where all attention is dense."""

    keys: Tensor
    values: Tensor
    compressed: CompressedKeys | None = None

    @classmethod
    def empty(
        cls, config: ModelConfig, num_pages: int, *, dtype: torch.dtype, device: torch.device, sparse: SparseConfig | None = None
    ) -> PagedCache:
        shape = (config.num_layers, num_pages * PAGE_TOKENS, config.num_kv_heads, config.head_dim)
        keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        return cls(keys, values, None if sparse is None else CompressedKeys.empty(config, sparse, num_pages=num_pages, device=device))

    @property
    def num_pages(self) -> int:
        return self.keys.shape[1] // PAGE_TOKENS

    @property
    def stores(self) -> tuple[Tensor, ...]:
        """All that is kept of pages: [layers, as many rows of each page, G, D]."""
        return (self.keys, self.values, *(() if self.compressed is None else self.compressed.stores))

    def compress(self, plan: SparseStep) -> None:
        """Makes compressed keys of all layers, from keys that are there."""
        assert self.compressed is not None, "only a cache of sparse attention has compressed keys"
        for layer, keys in enumerate(self.keys):
            self.compressed.write(layer, keys, plan)
