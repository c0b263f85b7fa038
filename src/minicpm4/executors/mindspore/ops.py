"""The operations of `model.ops` that MindSpore has on every device. Each writes the lines of a graph that compute it.

Written in primitives: MindSpore's functions of the same names are compiled with their argument checks, at every use.
"""

# T rows, K features, D head dim

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from minicpm4.executors.mindspore.graph import GraphWriter, Rows
from minicpm4.model import ModelConfig
from minicpm4.model.rope import RopeTable

Rotation = tuple[str, str]
ADD, MULTIPLY, CAST, RESHAPE, GATHER = ops.Add(), ops.Mul(), ops.Cast(), ops.Reshape(), ops.Gather()
COSINE, SINE, HALVES, JOIN = ops.Cos(), ops.Sin(), ops.Split(-1, 2), ops.Concat(-1)


class PortableOps:
    """See `model.ops.Ops`; what is missing here is each device's own. dtype: of activations; rotations are float32."""

    def __init__(self, config: ModelConfig, writer: GraphWriter, dtype: Any) -> None:
        self.head_dim, self.writer, self.dtype = config.head_dim, writer, dtype

    def activation(self, name: str) -> str:
        """What was computed in float32, in the type of activations."""
        return name if self.dtype == ms.float32 else self.writer.call(CAST, name, self.writer.name_of(self.dtype))

    def scale(self, x_TK: Rows, factor: float) -> Rows:
        if factor == 1.0:
            return x_TK
        return replace(x_TK, name=self.activation(self.writer.call(MULTIPLY, x_TK.name, self.writer.number(factor))))

    def rotation(self, positions_T: Rows, table: RopeTable) -> Rotation:
        """Of whole heads [T, 1, D], float32: cosines twice over, and sines of which the first half is negative."""
        w = self.writer
        factors, frequencies = (w.name_of(Tensor(np.tile(part, 2))) for part in (table.inverse_factors_F, table.inverse_frequencies_F))
        magnitudes = np.repeat(np.array([-table.magnitude, table.magnitude], np.float32), self.head_dim // 2)
        positions = w.call(RESHAPE, w.call(CAST, positions_T.name, w.name_of(ms.float32)), f"({positions_T.num_rows}, 1, 1)")
        angles = w.call(MULTIPLY, w.call(MULTIPLY, positions, factors), frequencies)
        cosines = w.call(MULTIPLY, w.call(COSINE, angles), w.number(table.magnitude))
        return cosines, w.call(MULTIPLY, w.call(SINE, angles), w.name_of(Tensor(magnitudes)))

    def rms_norm(self, x_TK: Rows, weight_K: Any, eps: float) -> Rows:
        raise NotImplementedError  # each device's own

    def rms_norm_heads(self, x_TK: Rows, weight_D: Any, eps: float) -> Rows:
        normed = self.rms_norm(replace(x_TK, name=self.heads_of(x_TK)), weight_D, eps)
        return replace(x_TK, name=self.writer.call(RESHAPE, normed.name, f"({x_TK.num_rows}, {x_TK.columns})"))

    def add_bias(self, x_TK: Rows, bias_K: Any) -> Rows:
        return replace(x_TK, name=self.activation(self.writer.call(ADD, x_TK.name, self.writer.name_of(bias_K))))

    def heads_of(self, x_TK: Rows) -> str:
        """The same as [T, heads, D]."""
        return self.writer.call(RESHAPE, x_TK.name, f"({x_TK.num_rows}, {x_TK.columns // self.head_dim}, {self.head_dim})")

    def rope(self, x_TK: Rows, rotation: Rotation) -> Rows:
        w, heads = self.writer, self.heads_of(x_TK)
        first, second = w.call(HALVES, heads, outputs=2).split(", ")
        swapped = w.call(JOIN, f"({second}, {first})")
        turned = w.call(ADD, w.call(MULTIPLY, heads, rotation[0]), w.call(MULTIPLY, swapped, rotation[1]))
        return replace(x_TK, name=self.activation(w.call(RESHAPE, turned, f"({x_TK.num_rows}, {x_TK.columns})")))

    def add_scaled(self, x_TK: Rows, y_TK: Rows, factor: float) -> Rows:
        y = y_TK.name if factor == 1.0 else self.writer.call(MULTIPLY, y_TK.name, self.writer.number(factor))
        return replace(x_TK, name=self.activation(self.writer.call(ADD, x_TK.name, y)))

    def take(self, x_TK: Rows, rows_R: Rows) -> Rows:
        return replace(rows_R, name=self.writer.call(GATHER, x_TK.name, rows_R.name, "0"), columns=x_TK.columns)
