"""The operations of `model.ops` in torch, float32, none of them in place on a value that a gradient may flow through."""

# T rows, H query heads, G kv heads, D head dim, L tokens in the cache, P pages

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from minicpm4.model import PAGE_TOKENS, ModelConfig, Step, pages_for
from minicpm4.model.rope import RopeTable

Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TorchStep:
    """A step with its arrays on the device, and the host's step beside them for lengths and pages."""

    host: Step
    tokens_T: Tensor
    positions_T: Tensor
    wanted_R: Tensor
    slots_T: Tensor

    @classmethod
    def of(cls, step: Step, device: torch.device) -> TorchStep:
        def move(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device, torch.int64)

        return cls(step, move(step.tokens_T), move(step.positions_T), move(step.wanted_R), move(step.slots_T))


@dataclass(frozen=True)
class TorchCache:
    """keys, values: [layers, P * PAGE_TOKENS, G, D] in the storage dtype."""

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, config: ModelConfig, num_pages: int, *, dtype: torch.dtype, device: torch.device) -> TorchCache:
        shape = (config.num_layers, num_pages * PAGE_TOKENS, config.num_kv_heads, config.head_dim)
        return cls(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))


class TorchOps:
    """See `model.ops.Ops`. The cache holds detached values: gradients flow through what a step computes, not through what it reads back."""

    def __init__(self, config: ModelConfig, cache: TorchCache) -> None:
        self.config, self.cache = config, cache

    def embed(self, table: Tensor, tokens_T: Tensor) -> Tensor:
        return functional.embedding(tokens_T, table)

    def scale(self, x_TK: Tensor, factor: float) -> Tensor:
        return x_TK * factor

    def rms_norm(self, x_TK: Tensor, weight_K: Tensor, eps: float) -> Tensor:
        return functional.rms_norm(x_TK, x_TK.shape[-1:], weight_K, eps)

    def linear(self, x_TK: Tensor, weight_NK: Tensor) -> Tensor:
        return functional.linear(x_TK, weight_NK)

    def rotation(self, positions_T: Tensor, table: RopeTable) -> Rotation:
        factors, frequencies = (torch.from_numpy(v).to(positions_T.device) for v in (table.inverse_factors_F, table.inverse_frequencies_F))
        angles_TF = (positions_T.float()[:, None] * factors) * frequencies
        return angles_TF.cos() * table.magnitude, angles_TF.sin() * table.magnitude

    def rope(self, x_TK: Tensor, rotation: Rotation) -> Tensor:
        cosines, sines = (part[:, None, :] for part in rotation)
        first, second = x_TK.unflatten(-1, (-1, self.config.head_dim)).chunk(2, dim=-1)
        return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1).flatten(1)

    def attend(self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, *, layer: int, step: TorchStep) -> Tensor:
        heads = (-1, self.config.head_dim)
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        for stored, new in ((keys, k_TGD), (values, v_TGD)):
            stored[step.slots_T] = new.detach().unflatten(-1, heads).to(stored.dtype)
        host, outputs = step.host, []
        for sequence, length in enumerate(host.lengths_S.tolist()):
            rows = slice(int(host.starts_S1[sequence]), int(host.starts_S1[sequence + 1]))
            slots_L = self.slots_of(host.pages_SP[sequence], length)
            k, v = (self.with_new(stored[slots_L], new[rows]) for stored, new in ((keys, k_TGD), (values, v_TGD)))
            outputs.append(self.attend_dense(q_THD[rows].unflatten(-1, heads), k, v, positions_T=step.positions_T[rows]))
        return torch.cat(outputs)

    def slots_of(self, pages_P: np.ndarray, length: int) -> Tensor:
        """Slots of a sequence's first `length` tokens."""
        pages = torch.from_numpy(pages_P[: pages_for(length)]).to(self.cache.keys.device, torch.int64)
        return (pages[:, None] * PAGE_TOKENS + torch.arange(PAGE_TOKENS, device=pages.device)).flatten()[:length]

    def with_new(self, stored_LGD: Tensor, new_TK: Tensor) -> Tensor:
        """The sequence's tokens; the newest ones as the step computed them where a gradient is wanted, else as stored."""
        if not new_TK.requires_grad:
            return stored_LGD.float()
        return torch.cat((stored_LGD[: len(stored_LGD) - len(new_TK)].float(), new_TK.unflatten(-1, (-1, self.config.head_dim))))

    def attend_dense(self, q_THD: Tensor, k_LGD: Tensor, v_LGD: Tensor, *, positions_T: Tensor) -> Tensor:
        mask_TL = torch.arange(len(k_LGD), device=q_THD.device) <= positions_T[:, None]
        q, k, v = (x.transpose(0, 1)[None] for x in (q_THD, k_LGD, v_LGD))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask_TL, enable_gqa=True)
        return out[0].transpose(0, 1).flatten(1)

    def swiglu(self, gate_TK: Tensor, up_TK: Tensor) -> Tensor:
        return functional.silu(gate_TK) * up_TK

    def add_scaled(self, x_TK: Tensor, y_TK: Tensor, factor: float) -> Tensor:
        return torch.add(x_TK, y_TK, alpha=factor)

    def take(self, x_TK: Tensor, rows_R: Tensor) -> Tensor:
        return x_TK[rows_R]
