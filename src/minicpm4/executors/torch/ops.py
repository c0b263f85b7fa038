"""The operations of `model.ops` in torch, none of them in place on a value that a gradient may flow through.

Attention is a strategy: over a paged cache (`paged`), or over packed documents without a cache (`packed`). Knows neither, nor what a weight
is. The dtype of activations is that of the embedding's rows.
"""

# T rows, H query heads, G kv heads, D head dim, K features

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from minicpm4.executors.torch.weights import Weight
from minicpm4.model import ModelConfig
from minicpm4.model.rope import RopeTable

Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TorchStep:
    """What `forward` reads, on the device. attention: what the attention that the step was made for needs to know of it."""

    tokens_T: Tensor
    positions_T: Tensor
    logit_rows_R: Tensor
    attention: Any


class Attention(Protocol):
    """How rows see each other, and what was before them."""

    def attend(self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, *, layer: int, step: Any) -> Tensor:
        """[T, H, D]; scores are divided by sqrt(D). step: `TorchStep.attention`."""


class TorchOps:
    """See `model.ops.Ops`."""

    def __init__(self, config: ModelConfig, attention: Attention) -> None:
        self.config, self.attention = config, attention

    def embed(self, table: Weight, tokens_T: Tensor) -> Tensor:
        return table.rows(tokens_T)

    def scale(self, x_TK: Tensor, factor: float) -> Tensor:
        return x_TK if factor == 1 else x_TK * factor

    def rms_norm(self, x_TK: Tensor, weight_K: Weight, eps: float) -> Tensor:
        return functional.rms_norm(x_TK, x_TK.shape[-1:], weight_K.values(), eps)

    def rms_norm_heads(self, x_TK: Tensor, weight_D: Weight, eps: float) -> Tensor:
        return self.rms_norm(self.heads(x_TK), weight_D, eps).flatten(1)

    def add_bias(self, x_TK: Tensor, bias_K: Weight) -> Tensor:
        return x_TK + bias_K.values()

    def linear(self, x_TK: Tensor, weight_NK: Weight) -> Tensor:
        return weight_NK.linear(x_TK)

    def rotation(self, positions_T: Tensor, table: RopeTable) -> Rotation:
        """float32 [T, 1, D]: cosines, and sines that a head with its halves swapped is multiplied with."""
        factors, frequencies = (torch.from_numpy(v).to(positions_T.device) for v in (table.inverse_factors_F, table.inverse_frequencies_F))
        angles_T1F = ((positions_T.float()[:, None] * factors) * frequencies)[:, None]
        cosines, sines = angles_T1F.cos() * table.magnitude, angles_T1F.sin() * table.magnitude
        return torch.cat((cosines, cosines), dim=-1), torch.cat((-sines, sines), dim=-1)

    def rope(self, x_TK: Tensor, rotation: Rotation) -> Tensor:
        x_THD, (cosines, sines) = self.heads(x_TK), rotation
        swapped_THD = x_THD.roll(self.config.head_dim // 2, dims=-1)
        return torch.addcmul(x_THD * cosines, swapped_THD, sines).to(x_TK.dtype).flatten(1)

    def attend(self, q_TK: Tensor, k_TK: Tensor, v_TK: Tensor, *, layer: int, step: TorchStep) -> Tensor:
        q, k, v = (self.heads(x) for x in (q_TK, k_TK, v_TK))
        return self.attention.attend(q, k, v, layer=layer, step=step.attention).flatten(1)

    def heads(self, x_TK: Tensor) -> Tensor:
        return x_TK.unflatten(-1, (-1, self.config.head_dim))

    def swiglu(self, gate_TK: Tensor, up_TK: Tensor) -> Tensor:
        return functional.silu(gate_TK) * up_TK

    def add_scaled(self, x_TK: Tensor, y_TK: Tensor, factor: float) -> Tensor:
        return torch.add(x_TK, y_TK, alpha=factor)

    def take(self, x_TK: Tensor, rows_R: Tensor) -> Tensor:
        return x_TK[rows_R]
