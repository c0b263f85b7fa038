"""What a weight is: how it is multiplied with, and how its rows are read. Operations never ask which kind they have.

A new number format (FP8 with scales, say) is one more class with a `linear` of its own; an adapter or a rounding in training wraps another
weight. A kind that keeps numbers only needs `values`.
"""

# T rows, K in features, N out features, R rank

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from minicpm4.model import PackedTensor
from minicpm4.quant import dequantize


class Weight:
    """A matrix [N, K], or a vector [K] (norms, biases), of which only `values` is asked for."""

    nbytes: int

    def values(self) -> Tensor:
        """The numbers, with their gradient where there is one."""
        raise NotImplementedError

    def linear(self, x_TK: Tensor) -> Tensor:
        """x @ weight.T, [T, N]."""
        return functional.linear(x_TK, self.values())

    def rows(self, ids_T: Tensor) -> Tensor:
        """[T, K]."""
        return functional.embedding(ids_T, self.values())


class Plain(Weight):
    """A tensor, a parameter perhaps."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.nbytes = tensor, tensor.nbytes

    def values(self) -> Tensor:
        return self.tensor


class Stored(Weight):
    """As a file has it, perhaps quantized, dequantized when it is used: for rows, of which a step reads few.

    Not for products: to dequantize MiniCPM4-0.5B's gate matrix takes 9 (q8_0) to 26 times (q2_0) as
    long as to multiply a row with it in bfloat16; to dequantize a row of 1024 takes 20 to 60 us.
    """

    def __init__(self, stored: PackedTensor, *, dtype: torch.dtype, device: torch.device) -> None:
        self.stored, self.dtype, self.device, self.nbytes = stored, dtype, device, stored.nbytes

    def values(self) -> Tensor:
        return torch.from_numpy(dequantize(self.stored)).to(self.device, self.dtype)

    def rows(self, ids_T: Tensor) -> Tensor:
        return torch.from_numpy(dequantize(self.stored, ids_T.cpu().numpy())).to(self.device, self.dtype)


class Blocked(Weight):
    """A bfloat16 matrix in the order that oneDNN's products read: on AVX-512 without AMX 1.45 times as fast as `functional.linear` for one
    row, 1.3 times for 16, the same for 512; float32 gains nothing. Without gradients."""

    def __init__(self, tensor_NK: Tensor) -> None:
        self.shape, self.nbytes = tensor_NK.shape, tensor_NK.nbytes
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(tensor_NK, 1)

    def values(self) -> Tensor:
        return self.blocks.to_dense()

    def linear(self, x_TK: Tensor) -> Tensor:
        if not len(x_TK):
            return x_TK.new_empty((0, self.shape[0]))
        out_TN: Tensor = torch.ops.mkldnn._linear_pointwise(x_TK, self.blocks, None, "none", [], "")
        return out_TN


class Pair(Weight):
    """One matrix in two forms: `table` to read rows of, `matrix` to multiply with."""

    def __init__(self, table: Weight, matrix: Weight) -> None:
        self.table, self.matrix, self.nbytes = table, matrix, matrix.nbytes

    def values(self) -> Tensor:
        return self.matrix.values()

    def linear(self, x_TK: Tensor) -> Tensor:
        return self.matrix.linear(x_TK)

    def rows(self, ids_T: Tensor) -> Tensor:
        return self.table.rows(ids_T)


class Newest:
    """The newest product of a fused matrix: its parts are asked for one after the other, with the same input."""

    def __init__(self) -> None:
        self._made: tuple[Weight, Tensor, Tensor] | None = None

    def product(self, whole: Weight, x_TK: Tensor) -> Tensor:
        if self._made is None or self._made[0] is not whole or self._made[1] is not x_TK:
            self._made = (whole, x_TK, whole.linear(x_TK))
        return self._made[2]

    def forget(self) -> None:
        self._made = None


@dataclass(frozen=True)
class Part(Weight):
    """Some rows of a matrix that several were fused into; they share one product, 3 % of the time of a token."""

    whole: Weight
    part: slice
    nbytes: int
    newest: Newest

    def values(self) -> Tensor:
        return self.whole.values()[self.part]

    def linear(self, x_TK: Tensor) -> Tensor:
        return self.newest.product(self.whole, x_TK)[:, self.part]


def fuse(tensors: list[Tensor], newest: Newest, *, prepare: Callable[[Tensor], Weight]) -> list[Weight]:
    """Matrices that meet the same input, as one. prepare: makes a weight of the matrix."""
    whole, ends, parts = prepare(torch.cat(tensors)), 0, list[Weight]()
    for tensor in tensors:
        parts.append(Part(whole, slice(ends, ends + len(tensor)), whole.nbytes * len(tensor) // sum(map(len, tensors)), newest))
        ends += len(tensor)
    return parts


class StraightThrough(torch.autograd.Function):
    """Rounds exactly; the gradient of the rounded numbers is that of the numbers."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        return rounding(exact)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class FakeQuantized(Weight):
    """Rounded when it is used, and trained unrounded.

    rounding: float tensor to tensor of the same shape, the numbers that a packed form would decode to; needs no gradient.
    """

    def __init__(self, base: Weight, rounding: Callable[[Tensor], Tensor]) -> None:
        self.base, self.rounding, self.nbytes = base, rounding, base.nbytes

    def values(self) -> Tensor:
        rounded: Tensor = StraightThrough.apply(self.base.values(), self.rounding)  # type: ignore[no-untyped-call]
        return rounded


class LowRank(Weight):
    """An adapter on any weight: base + scale * up_NR @ down_RK (LoRA, arXiv 2106.09685, where scale is alpha / rank)."""

    def __init__(self, base: Weight, *, down_RK: Tensor, up_NR: Tensor, scale: float) -> None:
        self.base, self.down, self.up, self.scale = base, down_RK, up_NR, scale
        self.nbytes = base.nbytes + down_RK.nbytes + up_NR.nbytes

    def values(self) -> Tensor:
        return self.base.values() + self.scale * (self.up @ self.down)

    def linear(self, x_TK: Tensor) -> Tensor:
        return torch.add(self.base.linear(x_TK), (x_TK @ self.down.T) @ self.up.T, alpha=self.scale)

    def rows(self, ids_T: Tensor) -> Tensor:
        return torch.add(self.base.rows(ids_T), functional.embedding(ids_T, self.up) @ self.down, alpha=self.scale)
