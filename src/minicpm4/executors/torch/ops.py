"""The operations of `model.ops` in torch, float32, none of them in place on a value that a gradient may flow through."""

# T rows, H query heads, G kv heads, D head dim, L tokens in the cache, P pages

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from minicpm4.executors.torch.sparse import KernelStore, attend_sparse
from minicpm4.model import PAGE_TOKENS, ModelConfig, Step, pages_for
from minicpm4.model.config import SparseConfig
from minicpm4.model.linear_step import LinearStep
from minicpm4.model.rope import RopeTable
from minicpm4.model.sparse_step import SparseStep, plan_sparse

Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TorchStep:
    """A step with its arrays on the device, and the host's step beside them for lengths and pages. more: rows, and further
    slots of theirs."""

    host: Step
    tokens_T: Tensor
    positions_T: Tensor
    logit_rows_R: Tensor
    slots_T: Tensor
    sparse: SparseStep | None
    more: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, step: Step, device: torch.device, *, sparse: SparseConfig | None = None, linear: LinearStep | None = None) -> TorchStep:
        """sparse: the rule that the operations were made with. linear: where the step is one of draft trees."""

        def move(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device, torch.int64)

        plan = None if sparse is None else plan_sparse(sparse, step, fresh_S=None if linear is None else linear.fresh_S)
        more = None
        if linear is not None:
            rows_M = np.repeat(np.arange(len(step.tokens_T)), np.diff(linear.more_starts_T1))
            more = move(rows_M), move(linear.more_slots_M)
        return cls(step, move(step.tokens_T), move(step.positions_T), move(step.logit_rows_R), move(step.slots_T), plan, more)


@dataclass(frozen=True)
class TorchCache:
    """keys, values: [layers, P * PAGE_TOKENS, G, D] in the storage dtype."""

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, config: ModelConfig, num_pages: int, *, dtype: torch.dtype, device: torch.device) -> TorchCache:
        shape = (config.num_layers, num_pages * PAGE_TOKENS, config.num_kv_heads, config.head_dim)
        return cls(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))

    def extended(self, num_slots: int) -> TorchCache:
        """The same with more slots behind the others."""
        return TorchCache(*(functional.pad(stored, (0, 0, 0, 0, 0, num_slots)) for stored in (self.keys, self.values)))


class TorchOps:
    """See `model.ops.Ops`. The cache holds detached values: gradients flow through what a step computes, not through what it reads back."""

    def __init__(self, config: ModelConfig, cache: TorchCache, kernels: KernelStore | None = None) -> None:
        """kernels: where attention may be sparse; their rule is the one that steps are made with."""
        self.config, self.cache, self.kernels = config, cache, kernels

    def embed(self, table: Tensor, tokens_T: Tensor) -> Tensor:
        return functional.embedding(tokens_T, table)

    def scale(self, x_TK: Tensor, factor: float) -> Tensor:
        return x_TK * factor

    def rms_norm(self, x_TK: Tensor, weight_K: Tensor, eps: float) -> Tensor:
        return functional.rms_norm(x_TK, x_TK.shape[-1:], weight_K, eps)

    def rms_norm_heads(self, x_TK: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        return self.rms_norm(x_TK.unflatten(-1, (-1, self.config.head_dim)), weight_D, eps).flatten(1)

    def add_bias(self, x_TK: Tensor, bias_K: Tensor) -> Tensor:
        return x_TK + bias_K

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
            kept = new.detach().unflatten(-1, heads).to(stored.dtype)
            stored[step.slots_T] = kept
            if step.more is not None:
                stored[step.more[1]] = kept[step.more[0]]
        if self.kernels is not None and step.sparse is not None:
            self.kernels.write(layer, keys, step.sparse)
        host, outputs = step.host, []
        for sequence in range(len(host.lengths_S)):
            start, end = host.starts_S1[sequence : sequence + 2].tolist()
            middle = end if step.sparse is None else start + int(step.sparse.num_dense_S[sequence])
            inputs = (q_THD, k_TGD, v_TGD)
            if start < middle:
                outputs.append(self.dense_rows((start, middle), inputs, layer=layer, step=step, sequence=sequence))
            if middle < end:
                outputs.append(self.sparse_rows((start, middle, end), inputs, layer=layer, step=step, sequence=sequence))
        return torch.cat(outputs)

    def dense_rows(
        self, rows: tuple[int, int], inputs: tuple[Tensor, Tensor, Tensor], *, layer: int, step: TorchStep, sequence: int
    ) -> Tensor:
        """Attention of rows [first, last) of a sequence, its first of the step, to everything up to each."""
        part, length = slice(*rows), int(step.host.positions_T[rows[1] - 1]) + 1
        k, v = self.sequence_tokens(part, inputs[1:], layer=layer, pages_P=step.host.pages_SP[sequence], length=length)
        return self.attend_dense(inputs[0][part].unflatten(-1, (-1, self.config.head_dim)), k, v, positions_T=step.positions_T[part])

    def sparse_rows(
        self, rows: tuple[int, int, int], inputs: tuple[Tensor, Tensor, Tensor], *, layer: int, step: TorchStep, sequence: int
    ) -> Tensor:
        """Attention of rows [middle, last) to the blocks that they choose; rows from first on are the sequence's new ones.

        Without gradients the cache is read where it lies; with them the sequence is put together with what the step computed.
        """
        assert self.kernels is not None, "sparse rows come with kernels"
        first, middle, last = rows
        sparse, length = self.kernels.sparse, int(step.host.lengths_S[sequence])
        pages_P = step.host.pages_SP[sequence, : pages_for(length)]
        kernels = self.kernels.read(layer, pages_P, num_tokens=length)
        if any(x.requires_grad for x in inputs[1:]):
            k, v = self.sequence_tokens(slice(first, last), inputs[1:], layer=layer, pages_P=pages_P, length=length)
            pages_P = np.arange(len(pages_P))
        else:
            k, v = self.cache.keys[layer], self.cache.values[layer]
        q_TGJD = inputs[0][middle:last].unflatten(-1, (self.config.num_kv_heads, -1, self.config.head_dim))
        cached = (k, v, torch.from_numpy(pages_P).to(k.device, torch.int64))
        return attend_sparse(sparse, q_TGJD, cached, kernels=kernels, positions_T=step.positions_T[middle:last]).flatten(1)

    def sequence_tokens(
        self, rows: slice, new: tuple[Tensor, ...], *, layer: int, pages_P: np.ndarray, length: int
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [L, G, D] of a sequence's first `length` tokens, of which the last ones are the step's rows."""
        slots_L = self.slots_of(pages_P, length)
        k, v = (self.with_new(x[layer][slots_L], n[rows]) for x, n in zip((self.cache.keys, self.cache.values), new, strict=True))
        return k, v

    def slots_of(self, pages_P: np.ndarray, length: int) -> Tensor:
        """Slots of a sequence's first `length` tokens."""
        pages = torch.from_numpy(pages_P[: pages_for(length)]).to(self.cache.keys.device, torch.int64)
        return (pages[:, None] * PAGE_TOKENS + torch.arange(PAGE_TOKENS, device=pages.device)).flatten()[:length]

    def with_new(self, stored_LGD: Tensor, new_TK: Tensor) -> Tensor:
        """The sequence's tokens; the newest ones as the step computed them where a gradient is wanted, else as stored."""
        if not new_TK.requires_grad:
            return stored_LGD.to(new_TK.dtype)
        old_LGD = stored_LGD[: len(stored_LGD) - len(new_TK)].to(new_TK.dtype)
        return torch.cat((old_LGD, new_TK.unflatten(-1, (-1, self.config.head_dim))))

    def attend_dense(self, q_THD: Tensor, k_LGD: Tensor, v_LGD: Tensor, *, positions_T: Tensor) -> Tensor:
        """A mask does not hide a number that is none, since 0 times NaN is NaN: tokens with one count as zeros, and rows that see one
        as NaN. A single row, the last, sees all that there is."""
        mask_TL = torch.arange(len(k_LGD), device=q_THD.device) <= positions_T[:, None]
        is_broken_L = None
        if len(q_THD) > 1:
            is_broken_L = ~(k_LGD.isfinite() & v_LGD.isfinite()).flatten(1).all(dim=1)
            k_LGD, v_LGD = (x_LGD.masked_fill(is_broken_L[:, None, None], 0) for x_LGD in (k_LGD, v_LGD))
        q, k, v = (x.transpose(0, 1)[None] for x in (q_THD, k_LGD, v_LGD))
        out_TK = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask_TL, enable_gqa=True)[0].transpose(0, 1).flatten(1)
        if is_broken_L is None:
            return out_TK
        return out_TK.masked_fill((is_broken_L.cumsum(0) > 0)[positions_T, None], torch.nan)

    def swiglu(self, gate_TK: Tensor, up_TK: Tensor) -> Tensor:
        return functional.silu(gate_TK) * up_TK

    def add_scaled(self, x_TK: Tensor, y_TK: Tensor, factor: float) -> Tensor:
        return torch.add(x_TK, y_TK, alpha=factor)

    def take(self, x_TK: Tensor, rows_R: Tensor) -> Tensor:
        return x_TK[rows_R]
