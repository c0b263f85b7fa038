"""The operations of `model.ops` in MindSpore: those that are the same on every device, and the CPU's own.

MindSpore's compiler reads these functions, and `model.forward`, from their source: what they touch are tensors, operations made
before, tuples, and fields of the classes here. Numbers come as float32 tensors (`GraphConfig`), since the compiler takes a float of
a Python object for float64. On a CPU, products, lookups and attention are our own kernels as custom operations of the graph
(native/custom_ops.h): these take time for the rows that there are, not for padding.
"""

# T rows, K features, N out features, H query heads, G kv heads, D head dim

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from minicpm4 import _native
from minicpm4.executors.mindspore.rows import GraphStep, Rows
from minicpm4.model import Model, ModelConfig
from minicpm4.model.model import Layer
from minicpm4.model.rope import RopeTable

Rotation = tuple[Tensor, Tensor]


@ms.jit_class
@dataclass(frozen=True)
class GraphConfig:
    """What `forward` reads of `ModelConfig`, as float32 tensors."""

    norm_eps: Tensor
    embedding_scale: Tensor
    residual_scale: Tensor
    logit_divisor: Tensor

    @classmethod
    def of(cls, config: ModelConfig) -> GraphConfig:
        names = ("norm_eps", "embedding_scale", "residual_scale", "logit_divisor")
        return cls(*(Tensor(getattr(config, name), ms.float32) for name in names))


@ms.jit_class
@dataclass(frozen=True)
class GraphRope:
    """`model.rope.RopeTable` for heads of D, the second half of which turns as the first, and the other way for sines."""

    factors_D: Tensor
    frequencies_D: Tensor
    cosine_magnitude: Tensor
    sine_magnitudes_D: Tensor

    @classmethod
    def of(cls, table: RopeTable) -> GraphRope:
        signs = np.repeat(np.float32([-table.magnitude, table.magnitude]), len(table.inverse_factors_F))
        factors, frequencies = (Tensor(np.tile(part, 2)) for part in (table.inverse_factors_F, table.inverse_frequencies_F))
        return cls(factors, frequencies, Tensor(table.magnitude, ms.float32), Tensor(signs))


@ms.jit_class
class GraphLayer(Layer[Any]):
    """Fields that the compiler can read."""


@ms.jit_class
class GraphModel(Model[Any]):
    """Fields that the compiler can read."""

    @classmethod
    def of(cls, model: Model[Any]) -> GraphModel:
        layers = tuple(GraphLayer(**vars(layer)) for layer in model.layers)
        return cls(**vars(model) | {"config": GraphConfig.of(model.config), "rope": GraphRope.of(model.rope), "layers": layers})


class PortableOps:
    """See `model.ops.Ops`; what is missing here is each device's own."""

    def __init__(self, config: ModelConfig) -> None:
        self.head_dim, self.half = config.head_dim, config.head_dim // 2

    def scale(self, x_TK: Rows, factor: Tensor) -> Rows:
        return x_TK[0] * factor, x_TK[1]

    def rotation(self, positions_T: Rows, table: GraphRope) -> Rotation:
        """[T, 1, D] each."""
        positions = ops.reshape(ops.cast(positions_T[0], ms.float32), (-1, 1, 1))
        angles = (positions * table.factors_D) * table.frequencies_D
        return ops.cos(angles) * table.cosine_magnitude, ops.sin(angles) * table.sine_magnitudes_D

    def rope(self, x_TK: Rows, rotation: Rotation) -> Rows:
        x, count = x_TK
        heads = ops.reshape(x, (x.shape[0], -1, self.head_dim))
        first, second = ops.split(heads, self.half, -1)
        turned = heads * rotation[0] + ops.concat((second, first), -1) * rotation[1]
        return ops.reshape(turned, x.shape), count

    def add_scaled(self, x_TK: Rows, y_TK: Rows, factor: Tensor) -> Rows:
        return x_TK[0] + y_TK[0] * factor, x_TK[1]

    def take(self, x_TK: Rows, rows_R: Rows) -> Rows:
        return ops.gather(x_TK[0], rows_R[0], 0), rows_R[1]


@ms.jit_class
@dataclass(frozen=True)
class CpuVector:
    values: Tensor


@ms.jit_class
@dataclass(frozen=True)
class CpuMatrix:
    """In our packed form, which a graph knows by its address (int64 [1]), and does not own. multiply, look_up: custom operations."""

    address: Tensor
    multiply: Any
    look_up: Any


def custom(symbol: str, columns: int) -> Any:
    """Our kernel of that name; its output is float32, has as many rows as its first input, and these columns."""
    operation = ops.Custom(
        f"{_native.__file__}:minicpm4_{symbol}",
        out_shape=lambda first, *_: [first[0], columns],
        out_dtype=lambda *_: ms.float32,
        func_type="aot",
    )
    operation.add_prim_attr("columns", columns)  # without, MindSpore takes another one of the same inputs for this one
    return operation


@ms.jit_class
class CpuOps(PortableOps):
    """float32 throughout."""

    def __init__(self, config: ModelConfig, attention: _native.AttentionHandle) -> None:
        super().__init__(config)
        self.addresses = tuple(Tensor([attention.address, layer], ms.int64) for layer in range(config.num_layers))
        self.kernel = custom("attend", config.num_heads * config.head_dim)

    def embed(self, table: CpuMatrix, tokens_T: Rows) -> Rows:
        return table.look_up(tokens_T[0], table.address), tokens_T[1]

    def rms_norm(self, x_TK: Rows, weight_K: CpuVector, eps: Tensor) -> Rows:
        x, count = x_TK
        return x * ops.rsqrt(ops.mean(x * x, -1, True) + eps) * weight_K.values, count

    def linear(self, x_TK: Rows, weight_NK: CpuMatrix) -> Rows:
        return weight_NK.multiply(x_TK[0], x_TK[1], weight_NK.address), x_TK[1]

    def attend(self, q_THD: Rows, k_TGD: Rows, v_TGD: Rows, *, layer: int, step: GraphStep) -> Rows:
        positions, slots, starts, lengths, pages = step.places
        place = self.addresses[layer]
        return self.kernel(q_THD[0], k_TGD[0], v_TGD[0], positions, slots, starts, lengths, pages, place), q_THD[1]

    def swiglu(self, gate_TK: Rows, up_TK: Rows) -> Rows:
        return ops.silu(gate_TK[0]) * up_TK[0], gate_TK[1]
