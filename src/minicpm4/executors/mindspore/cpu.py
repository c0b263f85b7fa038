"""The CPU's entry of the table: float32; products, lookups and attention are our own kernels as custom operations of the graph.

These (native/custom_ops.h) read weights of any format as they are packed, and pages of the cache where they lie, and take time for
the rows and tokens that there are, not for padding. MindSpore on a CPU has no fused attention, and its own products are slower.
"""

# T rows, K features, N out features, H query heads, G kv heads, D head dim

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from minicpm4 import _native
from minicpm4.errors import CapacityError
from minicpm4.executors.base import ExecutorOptions, WeightLoader
from minicpm4.executors.cpu_kernels import choose_isa, native_rule
from minicpm4.executors.mindspore.ops import PortableOps
from minicpm4.executors.mindspore.rows import GraphStep, Rows
from minicpm4.hardware import Choice
from minicpm4.model import Model, ModelConfig, Step
from minicpm4.quant import dequantize


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
        place, positions = self.addresses[layer], step.positions_T[0]
        out = self.kernel(q_THD[0], k_TGD[0], v_TGD[0], positions, step.slots_T, step.starts_T1, step.lengths_T, step.pages_TW, place)
        return out, q_THD[1]

    def swiglu(self, gate_TK: Rows, up_TK: Rows) -> Rows:
        return ops.silu(gate_TK[0]) * up_TK[0], gate_TK[1]


class CpuDevice:
    """Owns the packed matrices and the cache. MindSpore keeps what a graph has seen, so that a graph sees addresses alone, and the memory
    goes with this object."""

    def __init__(self, config: ModelConfig, options: ExecutorOptions) -> None:
        use_one_thread()
        isa = choose_isa(options.isa)
        self.isa, self.vocab_size, self.team = isa.value, config.vocab_size, shared_team(options.threads)
        self.attention = _native.AttentionHandle(
            isa.value,
            self.team,
            max_rows=options.max_step_tokens,
            num_pages=options.num_pages,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            kv_format=options.kv_format,
            sparse=None if options.sparse is None else native_rule(options.sparse),
        )
        self.arena, self.packers = _native.Arena(), _native.Team(1)
        self.operation = cache(custom)
        self.handles: list[_native.WeightHandle] = []
        self.packed_bytes: dict[CpuMatrix, int] = {}
        self.operations = CpuOps(config, self.attention)
        self.kv_bytes = int(self.attention.kv_bytes)
        self.choices = (
            Choice("operations", "fp32 on cpu", "products, lookups and attention by our kernels, the rest by MindSpore's"),
            isa,
        )

    def load(self, weights: WeightLoader, name: str) -> CpuVector | CpuMatrix:
        tensor = weights(name)
        if len(tensor.shape) == 1:
            return CpuVector(Tensor(dequantize(tensor)))
        rows, columns = tensor.shape
        packed = _native.pack(tensor.format.name, rows, columns, tensor.data, self.packers, self.arena)
        self.handles.append(_native.WeightHandle(self.isa, self.team, packed))
        address = Tensor([self.handles[-1].address], ms.int64)
        matrix = CpuMatrix(address, self.operation("multiply", rows), self.operation("look_up", columns))
        self.packed_bytes[matrix] = packed.nbytes
        return matrix

    def bytes_read(self, model: Model[Any]) -> int:
        """By the products of one token."""
        read = [*(weight for layer in model.layers for weight in vars(layer).values()), model.head]
        return sum(self.packed_bytes.get(weight, 0) for weight in read)

    def check(self, step: Step) -> None:
        """ValueError where a step would leave the memory."""
        s = step
        self.attention.check(s.tokens_T, s.positions_T, s.slots_T, s.starts_S1, s.lengths_S, s.pages_SP, s.wanted_R, self.vocab_size)

    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None:
        self.attention.randomize(np.ascontiguousarray(pages, np.int32), seed)


@cache
def use_one_thread() -> None:
    """For MindSpore's own kernels: to hand out ones as small as here takes several threads longer (0.5 s a step instead of 3 ms where
    the cores are busy, 2026-11-25). Once a process, since it cannot be changed."""
    ms.runtime.dispatch_threads_num(1)
    ms.device_context.cpu.op_tuning.threads_num(1)


def shared_team(threads: int) -> _native.SharedTeam:
    try:
        return _native.SharedTeam(threads)
    except RuntimeError as error:
        raise CapacityError(f"the system gives no {threads} threads: {error}", hint="lower the number of threads") from error
