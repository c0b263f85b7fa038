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
from minicpm4.executors.base import CacheSize, WeightLoader
from minicpm4.executors.cpu_kernels import choose_isa, native_rule
from minicpm4.executors.mindspore.options import MindSporeOptions
from minicpm4.executors.mindspore.portable import ADD, MULTIPLY, PortableGraph
from minicpm4.executors.tracing import Attend, Embed, Linear, Swiglu
from minicpm4.hardware import Choice
from minicpm4.model import ModelConfig, Step
from minicpm4.quant import dequantize

MEAN, RSQRT, SIGMOID = ops.ReduceMean(keep_dims=True), ops.Rsqrt(), ops.Sigmoid()


@dataclass(frozen=True)
class CpuMatrix:
    """In our packed form, which a graph knows by its address (int64 [1]), and does not own. multiply, look_up: custom operations."""

    shape: tuple[int, ...]
    address: Tensor
    multiply: Any
    look_up: Any
    nbytes: int


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


class CpuGraph(PortableGraph):
    """float32 throughout. addresses: of the attention and each layer's number, int64 [2]."""

    def __init__(self, config: ModelConfig, size: tuple[int, int], *, addresses: tuple[Tensor, ...]) -> None:
        super().__init__(config, size, ms.float32)
        self.addresses, self.kernel = addresses, custom("attend", config.num_heads * config.head_dim)
        self.methods |= {Embed: self.embed, Linear: self.linear, Attend: self.attend, Swiglu: self.swiglu}

    def embed(self, embed: Embed) -> str:
        return self.writer.call(embed.table.look_up, "tokens_T", self.writer.name_of(embed.table.address))

    def normed(self, name: str, weight: Tensor, eps: float) -> str:
        w = self.writer
        mean_square = w.call(MEAN, w.call(MULTIPLY, name, name), "-1")
        factor = w.call(RSQRT, w.call(ADD, mean_square, w.number(eps)))
        return w.call(MULTIPLY, w.call(MULTIPLY, name, factor), w.name_of(weight))

    def linear(self, linear: Linear) -> str:
        count = "num_logits" if linear.has_logit_rows else "num_tokens"
        return self.writer.call(linear.weight.multiply, self.names[linear.x], count, self.writer.name_of(linear.weight.address))

    def attend(self, attend: Attend) -> str:
        heads = (self.names[x] for x in (attend.q, attend.k, attend.v))
        arrays = ("positions_T", "slots_T", "starts_T1", "lengths_T", "pages_TW")
        return self.writer.call(self.kernel, *heads, *arrays, self.writer.name_of(self.addresses[attend.layer]))

    def swiglu(self, swiglu: Swiglu) -> str:
        w, gate = self.writer, self.names[swiglu.gate]
        return w.call(MULTIPLY, w.call(MULTIPLY, gate, w.call(SIGMOID, gate)), self.names[swiglu.up])


class CpuDevice:
    """Owns the packed matrices and the cache. MindSpore keeps what a graph has seen, so that a graph sees addresses alone, and the memory
    goes with this object."""

    def __init__(self, config: ModelConfig, options: MindSporeOptions, size: CacheSize) -> None:
        use_one_thread()
        isa = choose_isa(options.isa)
        self.isa, self.pool = isa.value, shared_pool(options.threads)
        self.attention = _native.AttentionHandle(
            isa.value,
            self.pool,
            max_rows=size.max_step_tokens,
            num_pages=size.num_pages,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            kv_format=options.kv_format,
            sparse=None if size.sparse is None else native_rule(size.sparse),
        )
        self.arena, self.packers = _native.Arena(), _native.ThreadPool(1)
        self.operation = cache(custom)
        self.handles: list[_native.WeightHandle] = []
        self.config, self.addresses = config, tuple(Tensor([self.attention.address, n], ms.int64) for n in range(config.num_layers))
        self.kv_bytes = int(self.attention.kv_bytes)
        self.choices = (
            Choice("operations", "fp32 on cpu", "products, lookups and attention by our kernels, the rest by MindSpore's"),
            isa,
        )

    def graph(self, size: tuple[int, int], *, has_past: bool) -> CpuGraph:
        return CpuGraph(self.config, size, addresses=self.addresses)

    def load(self, weights: WeightLoader, name: str) -> Tensor | CpuMatrix:
        tensor = weights(name)
        if len(tensor.shape) == 1:
            return Tensor(dequantize(tensor))
        rows, columns = tensor.shape
        packed = _native.pack(tensor.format.name, rows, columns, tensor.data, self.packers, self.arena)
        self.handles.append(_native.WeightHandle(self.isa, self.pool, packed))
        address = Tensor([self.handles[-1].address], ms.int64)
        multiply, look_up = self.operation("multiply", rows), self.operation("look_up", columns)
        return CpuMatrix(tensor.shape, address, multiply, look_up, packed.nbytes)

    def has_past(self, step: Step) -> bool:
        """In any case: our kernels read all tokens from the cache."""
        return True

    def copy_pages(self, sources: np.ndarray, targets: np.ndarray) -> None:
        self.attention.copy_pages(sources, targets)

    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None:
        self.attention.randomize(np.ascontiguousarray(pages, np.int32), seed)


@cache
def use_one_thread() -> None:
    """For MindSpore's own kernels: to hand out ones as small as here takes several threads longer (0.5 s a step instead of 3 ms where
    the cores are busy, 2026-11-25). Once a process, since it cannot be changed."""
    ms.runtime.dispatch_threads_num(1)
    ms.device_context.cpu.op_tuning.threads_num(1)


def shared_pool(threads: int) -> _native.SharedThreadPool:
    try:
        return _native.SharedThreadPool(threads)
    except RuntimeError as error:
        raise CapacityError(f"the system gives no {threads} threads: {error}", hint="lower the number of threads") from error
