"""Runs the forward pass as MindSpore graphs: traced and compiled once for each padded size, then used again for every step.

On a CPU weights are packed as the native executor packs them and stay where they are; the cache is the native one too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from minicpm4 import _native
from minicpm4.errors import CapacityError
from minicpm4.executors.base import AS_CACHE, Capabilities, ExecutorOptions, WeightLoader
from minicpm4.executors.cpu_kernels import USABLE_ISAS, choose_isa, native_rule, weight_bytes
from minicpm4.executors.mindspore.ops import CpuMatrix, CpuOps, CpuVector, GraphModel, custom
from minicpm4.executors.mindspore.rows import SIZES, GraphStep, Padder
from minicpm4.hardware import Choice, available_memory
from minicpm4.model import STORAGE_FORMATS, Model, ModelConfig, Step, assemble, forward, pages_for
from minicpm4.quant import KV_FORMATS, dequantize

__all__ = ["CAPABILITIES", "MindSporeExecutor", "create", "free_memory", "weight_bytes"]

CAPABILITIES = Capabilities(
    weight_formats=frozenset(STORAGE_FORMATS),
    kv_formats=frozenset(KV_FORMATS),
    activations=frozenset(("f32",)),
    devices=frozenset(("cpu",)),
    isas=frozenset((None, *USABLE_ISAS)),
    kernel_format=AS_CACHE,
)
NUMBERS = itertools.count()  # of graphs in this process


@cache
def use_one_thread() -> None:
    """For MindSpore's own kernels: handing out ones as small as ours are here takes several threads longer (0.5 s a step instead of 3 ms
    where the cores are busy, 2026-11-25). Once a process, since it cannot be changed."""
    ms.runtime.dispatch_threads_num(1)
    ms.device_context.cpu.op_tuning.threads_num(1)


def free_memory(device: str) -> int | None:
    """Bytes that can be allocated; None where the system does not say."""
    return available_memory()


class MindSporeExecutor:
    """See `executors.base.Executor`."""

    name = "mindspore"
    warnings = ()
    peaks = None

    def __init__(self, config: ModelConfig, weights: WeightLoader, options: ExecutorOptions) -> None:
        use_one_thread()
        self.config = config
        isa = choose_isa(options.isa)
        self.choices: tuple[Choice, ...] = (
            Choice("device", options.device, f"asked for; MindSpore {ms.__version__}"),
            isa,
            Choice("graphs", "compiled", f"one for each of {', '.join(map(str, SIZES))} and {options.max_step_tokens} rows, when first needed"),
        )
        self._team = shared_team(options.threads)
        self._attention = _native.AttentionHandle(
            isa.value,
            self._team,
            max_rows=options.max_step_tokens,
            num_pages=options.num_pages,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            kv_format=options.kv_format,
            sparse=None if options.sparse is None else native_rule(options.sparse),
        )
        self._weights = PackedWeights(weights, isa.value, self._team)
        model: Model[Any] = assemble(config, self._weights, context_length=options.context_length)
        self._operations, self._model = CpuOps(config, self._attention), GraphModel.of(model)
        self._graphs: dict[tuple[int, int], Callable[..., Tensor]] = {}
        self._padder = Padder(options.max_step_tokens, pages_for(options.context_length))
        read = [*(weight for layer in model.layers for weight in vars(layer).values()), model.head]
        self.weight_bytes = sum(self._weights.nbytes.get(id(weight), 0) for weight in read)
        self.kv_bytes = int(self._attention.kv_bytes)

    def run(self, step: Step) -> np.ndarray:
        s = step
        self._attention.check(
            s.tokens_T, s.positions_T, s.slots_T, s.starts_S1, s.lengths_S, s.pages_SP, s.wanted_R, self.config.vocab_size
        )
        padded = self._padder.pad(step)
        if padded.size not in self._graphs:
            self._graphs[padded.size] = compiled(self._operations, self._model, GraphStep(padded))
        logits: np.ndarray = self._graphs[padded.size](*padded.tensors()).asnumpy()
        return logits[: len(step.wanted_R)]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Padded rows and wanted rows of each graph, in the order in which they were made."""
        return list(self._graphs)

    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None:
        self._attention.randomize(np.ascontiguousarray(pages, np.int32), seed)

    def close(self) -> None:
        del self._graphs, self._operations, self._model, self._weights, self._attention, self._team


class PackedWeights:
    """Owns the packed matrices, and gives parameters by name in the form that `CpuOps` reads. MindSpore keeps what a graph has seen, so that
    a graph sees addresses alone, and the memory goes with this object."""

    def __init__(self, weights: WeightLoader, isa: str, team: _native.SharedTeam) -> None:
        self.weights, self.isa, self.team = weights, isa, team
        self.arena, self.packers = _native.Arena(), _native.Team(1)
        self.operation = cache(custom)
        self.handles: list[_native.WeightHandle] = []
        self.nbytes: dict[int, int] = {}  # of each matrix that was loaded, by the id of its CpuMatrix

    def __call__(self, name: str) -> CpuVector | CpuMatrix:
        tensor = self.weights(name)
        if len(tensor.shape) == 1:
            return CpuVector(Tensor(dequantize(tensor)))
        rows, columns = tensor.shape
        packed = _native.pack(tensor.format.name, rows, columns, tensor.data, self.packers, self.arena)
        self.handles.append(_native.WeightHandle(self.isa, self.team, packed))
        address = Tensor([self.handles[-1].address], ms.int64)
        matrix = CpuMatrix(address, self.operation("multiply", rows), self.operation("look_up", columns))
        self.nbytes[id(matrix)] = packed.nbytes
        return matrix


def shared_team(threads: int) -> _native.SharedTeam:
    try:
        return _native.SharedTeam(threads)
    except RuntimeError as error:
        raise CapacityError(f"the system gives no {threads} threads: {error}", hint="lower the number of threads") from error


def compiled(operations: CpuOps, model: GraphModel, step: GraphStep) -> Callable[..., Tensor]:
    """The forward pass as a function of a step's tensors of one size; MindSpore compiles it from its source when it is called first."""

    def logits(*tensors: Tensor) -> Tensor:
        for parameter, tensor in zip(step.inputs, tensors):  # noqa: B905 -- the compiler knows no strict=
            ops.assign(parameter, tensor)
        return forward(operations, model, step)[0]

    logits.__name__ = f"logits_{next(NUMBERS)}"  # MindSpore finds graphs again by name and id, and an id may come back
    return ms.jit(logits)


def create(config: ModelConfig, weights: WeightLoader, options: ExecutorOptions) -> MindSporeExecutor:
    return MindSporeExecutor(config, weights, options)
