"""The operations of `model.ops` that MindSpore has on every device, and the model as its compiler can read it.

MindSpore compiles these functions, and `model.forward`, from their source: what they touch are tensors, operations made before,
tuples, and fields of classes marked for it. Numbers come as float32 tensors, since it takes a float of a Python object for float64.
"""

# T rows, K features, D head dim

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from minicpm4.executors.mindspore.rows import Rows
from minicpm4.model import Model, ModelConfig
from minicpm4.model.model import Layer
from minicpm4.model.rope import RopeTable

Rotation = tuple[Tensor, Tensor]


@ms.jit_class
@dataclass(frozen=True)
class GraphConfig:
    """What `forward` reads of `ModelConfig`."""

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
    """`model.rope.RopeTable` for whole heads: the second half turns as the first, with sines of the other sign."""

    factors_D: Tensor
    frequencies_D: Tensor
    cosine_magnitude: Tensor
    sine_magnitudes_D: Tensor

    @classmethod
    def of(cls, table: RopeTable) -> GraphRope:
        signs = np.repeat(np.array([-table.magnitude, table.magnitude], np.float32), len(table.inverse_factors_F))
        factors, frequencies = (Tensor(np.tile(part, 2)) for part in (table.inverse_factors_F, table.inverse_frequencies_F))
        return cls(factors, frequencies, Tensor(table.magnitude, ms.float32), Tensor(signs))


@ms.jit_class
class GraphLayer(Layer[Any]):
    """A layer whose fields the compiler can read."""


@ms.jit_class
class GraphModel(Model[Any]):
    """A model whose fields the compiler can read."""

    @classmethod
    def of(cls, model: Model[Any]) -> GraphModel:
        layers = tuple(GraphLayer(**vars(layer)) for layer in model.layers)
        return cls(**vars(model) | {"config": GraphConfig.of(model.config), "rope": GraphRope.of(model.rope), "layers": layers})


class PortableOps:
    """See `model.ops.Ops`; what is missing here is each device's own. Results have the type of the activations that go in."""

    def __init__(self, config: ModelConfig) -> None:
        self.head_dim, self.half = config.head_dim, config.head_dim // 2

    def scale(self, x_TK: Rows, factor: Tensor) -> Rows:
        x, count = x_TK
        return ops.cast(x * factor, x.dtype), count

    def rotation(self, positions_T: Rows, table: GraphRope) -> Rotation:
        """[T, 1, D] each, float32."""
        positions = ops.reshape(ops.cast(positions_T[0], ms.float32), (-1, 1, 1))
        angles = (positions * table.factors_D) * table.frequencies_D
        return ops.cos(angles) * table.cosine_magnitude, ops.sin(angles) * table.sine_magnitudes_D

    def rope(self, x_TK: Rows, rotation: Rotation) -> Rows:
        x, count = x_TK
        heads = ops.reshape(x, (x.shape[0], -1, self.head_dim))
        first, second = ops.split(heads, self.half, -1)
        turned = heads * rotation[0] + ops.concat((second, first), -1) * rotation[1]
        return ops.cast(ops.reshape(turned, x.shape), x.dtype), count

    def add_scaled(self, x_TK: Rows, y_TK: Rows, factor: Tensor) -> Rows:
        x, count = x_TK
        return ops.cast(x + y_TK[0] * factor, x.dtype), count

    def take(self, x_TK: Rows, rows_R: Rows) -> Rows:
        return ops.gather(x_TK[0], rows_R[0], 0), rows_R[1]
