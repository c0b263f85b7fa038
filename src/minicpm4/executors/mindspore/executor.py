"""Runs the forward pass as MindSpore graphs: compiled once for each padded size, then used again for every step.

What differs between devices is one entry of `DEVICES`; what a graph is fed with is in `rows`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from minicpm4.executors.base import AS_CACHE, Capabilities, ExecutorOptions, WeightLoader
from minicpm4.executors.cpu_kernels import USABLE_ISAS
from minicpm4.executors.mindspore.ascend import AscendDevice
from minicpm4.executors.mindspore.cpu import CpuDevice
from minicpm4.executors.mindspore.graph import GraphWriter
from minicpm4.executors.mindspore.ops import CAST
from minicpm4.executors.mindspore.rows import INPUTS, SIZES, NamedStep, Padder
from minicpm4.hardware import Choice, available_memory
from minicpm4.model import STORAGE_FORMATS, Model, ModelConfig, Step, assemble, forward, pages_for
from minicpm4.quant import KV_FORMATS

DEVICES: dict[str, type[CpuDevice] | type[AscendDevice]] = {"cpu": CpuDevice, "ascend": AscendDevice}
CAPABILITIES = Capabilities(
    weight_formats=frozenset(STORAGE_FORMATS),
    kv_formats=frozenset(KV_FORMATS),
    activations=frozenset(("f32",)),
    devices=frozenset(DEVICES),
    isas=frozenset((None, *USABLE_ISAS)),
    kernel_format=AS_CACHE,
)


def free_memory(device: str) -> int | None:
    """Bytes that can be allocated; None where nobody says."""
    return available_memory() if device == "cpu" else None


class MindSporeExecutor:
    """See `executors.base.Executor`."""

    name = "mindspore"
    warnings = ()
    peaks = None

    def __init__(self, config: ModelConfig, weights: WeightLoader, options: ExecutorOptions) -> None:
        self._device: Any = DEVICES[options.device](config, options)
        sizes = (*(size for size in SIZES if size < options.max_step_tokens), options.max_step_tokens)
        self.choices: tuple[Choice, ...] = (
            Choice("device", options.device, f"asked for; MindSpore {ms.__version__}"),
            *self._device.choices,
            Choice("graphs", f"of {', '.join(map(str, sizes))} rows", "compiled when first needed, never again as a context grows"),
        )
        self._model: Model[Any] = assemble(config, lambda name: self._device.load(weights, name), context_length=options.context_length)
        self._padder = Padder(options.max_step_tokens, pages_for(options.context_length), options.num_pages)
        self._graphs: dict[tuple[tuple[int, int], bool], Callable[..., Tensor]] = {}
        matrices = [weight for layer in self._model.layers for weight in layer.parameters]
        self.weight_bytes = sum(int(weight.nbytes) for weight in (*matrices, self._model.norm, self._model.head))
        self.kv_bytes = int(self._device.kv_bytes)

    def run(self, step: Step) -> np.ndarray:
        self._device.check(step)
        padded = self._padder.pad(step)
        kind = padded.size, self._device.has_past(step)
        if kind not in self._graphs:
            named = NamedStep.of(*padded.size, has_past=kind[1])
            self._graphs[kind] = write_graph(self._device.operations, self._model, named)
        logits: np.ndarray = self._graphs[kind](*padded.tensors()).asnumpy()
        return logits[: len(step.wanted_R)]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Padded rows and wanted rows of each graph, in the order in which they were made."""
        return [size for size, _ in self._graphs]

    def copy_pages(self, sources: np.ndarray, targets: np.ndarray) -> None:
        self._device.copy_pages(sources, targets)

    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None:
        self._device.randomize_pages(pages, seed=seed)

    def close(self) -> None:
        del self._graphs, self._model, self._device


def write_graph(operations: Callable[[GraphWriter], Any], model: Model[Any], step: NamedStep) -> Callable[..., Tensor]:
    """The forward pass as a function of a padded step's tensors, float32 logits."""
    writer = GraphWriter()
    logits = forward(operations(writer), model, step)
    return writer.compiled(INPUTS, writer.call(CAST, logits.name, writer.name_of(ms.float32)))


def create(config: ModelConfig, weights: WeightLoader, options: ExecutorOptions) -> MindSporeExecutor:
    return MindSporeExecutor(config, weights, options)
