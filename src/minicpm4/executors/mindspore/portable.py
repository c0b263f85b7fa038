"""What instructions become on every device: each method writes the lines of a graph that compute one, and gives the name of its result.

Written in primitives: MindSpore's functions of the same names are compiled with their argument checks, at every use.
"""

# T rows, K features, D head dim

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from minicpm4.executors.mindspore.graph import GraphWriter
from minicpm4.executors.tracing import (
    INPUTS,
    AddBias,
    AddScaled,
    HeadNorm,
    Instruction,
    RmsNorm,
    Rope,
    Rotation,
    Scale,
    Symbol,
    Take,
    Trace,
)
from minicpm4.model import ModelConfig

ADD, MULTIPLY, CAST, RESHAPE, GATHER = ops.Add(), ops.Mul(), ops.Cast(), ops.Reshape(), ops.Gather()
COSINE, SINE, HALVES, JOIN = ops.Cos(), ops.Sin(), ops.Split(-1, 2), ops.Concat(-1)


class PortableGraph:
    """A graph of one size of step, float32 results. size: padded rows, and padded rows of logits. dtype: of activations; rotations are
    float32. methods: of each class of instruction; a device adds its own.
    """

    def __init__(self, config: ModelConfig, size: tuple[int, int], dtype: Any) -> None:
        self.head_dim, self.num_rows, self.num_logits, self.dtype = config.head_dim, *size, dtype
        self.writer = GraphWriter()
        self.names: dict[Symbol, str] = {}
        self.sines: dict[Symbol, str] = {}  # of rotations, whose own name is that of the cosines
        self.methods: dict[type[Instruction], Callable[[Any], str]] = {
            Scale: self.scale,
            RmsNorm: self.rms_norm,
            HeadNorm: self.head_norm,
            AddBias: self.add_bias,
            Rotation: self.rotation,
            Rope: self.rope,
            AddScaled: self.add_scaled,
            Take: self.take,
        }

    def compiled(self, trace: Trace) -> Callable[..., tuple[Tensor, Tensor]]:
        """Logits and hidden states, as a function of a padded step's arrays."""
        for instruction in trace.instructions:
            self.names[instruction.out] = self.methods[type(instruction)](instruction)
        results = [self.writer.call(CAST, self.names[symbol], self.writer.name_of(ms.float32)) for symbol in (trace.logits, trace.hidden)]
        return self.writer.compiled(INPUTS, results)

    def rows(self, symbol: Symbol) -> int:
        return self.num_logits if symbol.has_logit_rows else self.num_rows

    def activation(self, name: str) -> str:
        """What was computed in float32, in the type of activations."""
        return name if self.dtype == ms.float32 else self.writer.call(CAST, name, self.writer.name_of(self.dtype))

    def heads(self, x: Symbol) -> str:
        """The same as [T, heads, D]."""
        return self.writer.call(RESHAPE, self.names[x], f"({self.rows(x)}, {x.columns // self.head_dim}, {self.head_dim})")

    def flat(self, name: str, like: Symbol) -> str:
        """What has heads, with the shape of this symbol."""
        return self.writer.call(RESHAPE, name, f"({self.rows(like)}, {like.columns})")

    def normed(self, name: str, weight: Any, eps: float) -> str:
        """Over the last axis; each device's own."""
        raise NotImplementedError

    def scale(self, scale: Scale) -> str:
        return self.activation(self.writer.call(MULTIPLY, self.names[scale.x], self.writer.number(scale.factor)))

    def rms_norm(self, norm: RmsNorm) -> str:
        return self.normed(self.names[norm.x], norm.weight, norm.eps)

    def head_norm(self, norm: HeadNorm) -> str:
        return self.flat(self.normed(self.heads(norm.x), norm.weight, norm.eps), norm.out)

    def add_bias(self, add: AddBias) -> str:
        return self.activation(self.writer.call(ADD, self.names[add.x], self.writer.name_of(add.bias)))

    def rotation(self, rotation: Rotation) -> str:
        """Of whole heads [T, 1, D], float32: cosines twice over, and sines of which the first half is negative."""
        w, table = self.writer, rotation.table
        factors, frequencies = (w.name_of(Tensor(np.tile(part, 2))) for part in (table.inverse_factors_F, table.inverse_frequencies_F))
        magnitudes = np.repeat(np.array([-table.magnitude, table.magnitude], np.float32), self.head_dim // 2)
        positions = w.call(RESHAPE, w.call(CAST, "positions_T", w.name_of(ms.float32)), f"({self.num_rows}, 1, 1)")
        angles = w.call(MULTIPLY, w.call(MULTIPLY, positions, factors), frequencies)
        cosines = w.call(MULTIPLY, w.call(COSINE, angles), w.number(table.magnitude))
        self.sines[rotation.out] = w.call(MULTIPLY, w.call(SINE, angles), w.name_of(Tensor(magnitudes)))
        return cosines

    def rope(self, rope: Rope) -> str:
        w, heads = self.writer, self.heads(rope.x)
        first, second = w.call(HALVES, heads, outputs=2).split(", ")
        swapped = w.call(JOIN, f"({second}, {first})")
        turned = w.call(ADD, w.call(MULTIPLY, heads, self.names[rope.rotation]), w.call(MULTIPLY, swapped, self.sines[rope.rotation]))
        return self.activation(self.flat(turned, rope.out))

    def add_scaled(self, add: AddScaled) -> str:
        y = self.names[add.y] if add.factor == 1.0 else self.writer.call(MULTIPLY, self.names[add.y], self.writer.number(add.factor))
        return self.activation(self.writer.call(ADD, self.names[add.x], y))

    def take(self, take: Take) -> str:
        return self.writer.call(GATHER, self.names[take.x], "logit_rows_R", "0")
