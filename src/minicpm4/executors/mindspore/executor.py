"""Runs the forward pass as MindSpore graphs: traced and compiled once for each padded size, then used again for every step.

On a CPU weights are packed as the native executor packs them and stay where they are; the cache is the native one too.
"""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor

from minicpm4 import _native
from minicpm4.errors import CapacityError
from minicpm4.executors.base import AS_CACHE, Capabilities, ExecutorOptions, WeightLoader
from minicpm4.executors.cpu_kernels import USABLE_ISAS, choose_isa, native_rule, weight_bytes
from minicpm4.executors.mindspore.ops import CpuOps, CpuWeight
from minicpm4.executors.mindspore.rows import SIZES, GraphStep, Padder
from minicpm4.hardware import Choice, available_memory
from minicpm4.model import STORAGE_FORMATS, Model, ModelConfig, Step, assemble, forward
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


def free_memory(device: str) -> int | None:
    """Bytes that can be allocated; None where the system does not say."""
    return available_memory()


class MindSporeExecutor:
    """See `executors.base.Executor`. traced: padded rows and wanted rows of each graph, in the order in which they were made."""

    name = "mindspore"
    warnings = ()
    peaks = None

    def __init__(self, config: ModelConfig, weights: WeightLoader, options: ExecutorOptions) -> None:
        self.config = config
        isa = choose_isa(options.isa)
        self.choices: tuple[Choice, ...] = (
            Choice("device", options.device, f"asked for; MindSpore {ms.__version__}"),
            isa,
            Choice("graphs", "traced", f"one for each of {', '.join(map(str, SIZES))} and {options.max_step_tokens} rows, when first needed"),
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
        self._model: Model[CpuWeight] = assemble(
            config, PackingLoader(weights, isa.value, self._team), context_length=options.context_length
        )
        self.traced: list[tuple[int, int]] = []
        self._padder = Padder(options.max_step_tokens, options.num_pages, options.context_length, options.sparse)
        self._graph = trace(CpuOps(config, self._attention), self._model, self.traced)
        matrices = [weight for layer in self._model.layers for weight in vars(layer).values()]
        self.weight_bytes = sum(weight.nbytes for weight in (*matrices, self._model.head))
        self.kv_bytes = int(self._attention.kv_bytes)

    def run(self, step: Step) -> np.ndarray:
        s = step
        self._attention.check(
            s.tokens_T, s.positions_T, s.slots_T, s.starts_S1, s.lengths_S, s.pages_SP, s.wanted_R, self.config.vocab_size
        )
        logits: np.ndarray = self._graph(*self._padder.pad(step).tensors()).asnumpy()
        return logits[: len(step.wanted_R)]

    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None:
        self._attention.randomize(np.ascontiguousarray(pages, np.int32), seed)

    def close(self) -> None:
        del self._graph, self._model, self._attention, self._team


class PackingLoader:
    """Loads parameters by name into the form that `CpuOps` reads. All packed weights lie in one arena."""

    def __init__(self, weights: WeightLoader, isa: str, team: _native.SharedTeam) -> None:
        self.weights, self.isa, self.team = weights, isa, team
        self.arena, self.packers = _native.Arena(), _native.Team(1)

    def __call__(self, name: str) -> CpuWeight:
        tensor = self.weights(name)
        if len(tensor.shape) == 1:
            values = Tensor(dequantize(tensor))
            return CpuWeight(tensor.shape, values, nbytes=4 * tensor.shape[0])
        rows, columns = tensor.shape
        packed = _native.pack(tensor.format.name, rows, columns, tensor.data, self.packers, self.arena)
        handle = _native.WeightHandle(self.isa, self.team, packed)
        return CpuWeight(tensor.shape, Tensor([handle.address], ms.int64), handle, packed.nbytes)


def shared_team(threads: int) -> _native.SharedTeam:
    try:
        return _native.SharedTeam(threads)
    except RuntimeError as error:
        raise CapacityError(f"the system gives no {threads} threads: {error}", hint="lower the number of threads") from error


def trace(ops: CpuOps, model: Model[CpuWeight], sizes: list[tuple[int, int]]) -> Callable[..., Tensor]:
    """The forward pass as a function of a padded step's tensors; MindSpore traces and compiles it for each set of shapes that it meets.

    sizes: gets the padded rows and wanted rows of every trace.
    """

    def logits(*tensors: Tensor) -> Tensor:
        step = GraphStep.of(*tensors)
        sizes.append((step.tokens_T.values.shape[0], step.wanted_R.values.shape[0]))
        return forward(ops, model, step).values

    return ms.jit(logits, capture_mode="trace")


def create(config: ModelConfig, weights: WeightLoader, options: ExecutorOptions) -> MindSporeExecutor:
    return MindSporeExecutor(config, weights, options)
