"""The operations of `model.ops` in MindSpore: those that are the same on every device, and the CPU's own.

They run while a graph is traced, so that what is Python here costs nothing later. On a CPU, products, lookups and attention are our
own kernels as custom operations of the graph (native/custom_ops.h), which take time for the rows that there are, not for padding.
"""

# T rows, K features, N out features, H query heads, G kv heads, D head dim

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from minicpm4 import _native
from minicpm4.executors.mindspore.rows import GraphStep, Rows
from minicpm4.model import ModelConfig
from minicpm4.model.rope import RopeTable

Rotation = tuple[Tensor, Tensor]


class PortableOps:
    """See `model.ops.Ops`; what is missing here is each device's own."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def scale(self, x_TK: Rows, factor: float) -> Rows:
        return x_TK if factor == 1.0 else Rows(x_TK.values * factor, x_TK.count)

    def rotation(self, positions_T: Rows, table: RopeTable) -> Rotation:
        """Cosines twice over, and sines of which the first half is negative: [T, 1, D] each."""
        factors, frequencies = (Tensor(np.tile(part, 2)) for part in (table.inverse_factors_F, table.inverse_frequencies_F))
        signs = np.repeat(np.float32([-table.magnitude, table.magnitude]), self.config.head_dim // 2)
        positions = ops.reshape(ops.cast(positions_T.values, ms.float32), (-1, 1, 1))
        angles = (positions * factors) * frequencies
        return ops.cos(angles) * table.magnitude, ops.sin(angles) * Tensor(signs)

    def rope(self, x_TK: Rows, rotation: Rotation) -> Rows:
        cosines, sines = rotation
        heads = ops.reshape(x_TK.values, (x_TK.values.shape[0], -1, self.config.head_dim))
        first, second = ops.split(heads, self.config.head_dim // 2, axis=-1)
        turned = heads * cosines + ops.concat((second, first), axis=-1) * sines
        return Rows(ops.reshape(turned, x_TK.values.shape), x_TK.count)

    def add_scaled(self, x_TK: Rows, y_TK: Rows, factor: float) -> Rows:
        return Rows(x_TK.values + (y_TK.values if factor == 1.0 else y_TK.values * factor), x_TK.count)

    def take(self, x_TK: Rows, rows_R: Rows) -> Rows:
        return Rows(ops.gather(x_TK.values, rows_R.values, 0), rows_R.count)


@dataclass(frozen=True)
class CpuWeight:
    """A matrix [N, K] in our packed form, which a graph knows by its address (int64 [1]); or a vector as it is, without a handle."""

    shape: tuple[int, ...]
    tensor: Tensor
    handle: _native.WeightHandle | None = None
    nbytes: int = 0


class CpuOps(PortableOps):
    """float32 throughout."""

    def __init__(self, config: ModelConfig, attention: _native.AttentionHandle) -> None:
        super().__init__(config)
        self.addresses = [Tensor([attention.address, layer], ms.int64) for layer in range(config.num_layers)]
        self.kernels: dict[tuple[str, int], ops.Custom] = {}

    def kernel(self, symbol: str, columns: int) -> Callable[..., Tensor]:
        """The custom operation whose output has as many rows as its first input, and these columns."""
        if (symbol, columns) not in self.kernels:
            custom = ops.Custom(
                f"{_native.__file__}:minicpm4_{symbol}",
                out_shape=lambda first, *_: [first[0], columns],
                out_dtype=lambda *_: ms.float32,
                func_type="aot",
            )
            custom.add_prim_attr("columns", columns)  # without, MindSpore takes another one of the same inputs for this one
            self.kernels[symbol, columns] = custom
        return self.kernels[symbol, columns]

    def embed(self, table: CpuWeight, tokens_T: Rows) -> Rows:
        return Rows(self.kernel("look_up", table.shape[1])(tokens_T.values, table.tensor), tokens_T.count)

    def rms_norm(self, x_TK: Rows, weight_K: CpuWeight, eps: float) -> Rows:
        x = x_TK.values
        mean_square = ops.mean(x * x, -1, True)
        return Rows(x * ops.rsqrt(mean_square + eps) * weight_K.tensor, x_TK.count)

    def linear(self, x_TK: Rows, weight_NK: CpuWeight) -> Rows:
        return Rows(self.kernel("multiply", weight_NK.shape[0])(x_TK.values, x_TK.count, weight_NK.tensor), x_TK.count)

    def attend(self, q_THD: Rows, k_TGD: Rows, v_TGD: Rows, *, layer: int, step: GraphStep) -> Rows:
        arrays = (step.positions_T.values, step.slots_T, step.starts_T1, step.lengths_T, step.pages_TW)
        kernel = self.kernel("attend", q_THD.values.shape[1])
        return Rows(kernel(q_THD.values, k_TGD.values, v_TGD.values, *arrays, self.addresses[layer]), q_THD.count)

    def swiglu(self, gate_TK: Rows, up_TK: Rows) -> Rows:
        return Rows(ops.silu(gate_TK.values) * up_TK.values, gate_TK.count)
