"""Runs the forward pass as MindSpore graphs: compiled once for each padded size, then used again for every step.

What differs between devices is one entry of `DEVICES`. Draft trees run path by path, since a graph's attention sees tokens in a row only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from minicpm4.executors.backend import Preferences, choose_threads
from minicpm4.executors.base import AS_CACHE, HALF_CACHE, CacheSize, Capabilities, StepResult, WeightLoader, asked_or
from minicpm4.executors.cpu_kernels import USABLE_ISAS, weight_bytes
from minicpm4.executors.mindspore.ascend import AscendDevice
from minicpm4.executors.mindspore.cpu import CpuDevice
from minicpm4.executors.mindspore.options import MindSporeOptions
from minicpm4.executors.paths import kept_path_step, path_steps
from minicpm4.executors.tracing import Padder, trace
from minicpm4.hardware import Choice, available_memory
from minicpm4.model import Model, ModelConfig, Step, assemble, pages_for
from minicpm4.model.step import StepLimits, check_step
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import KV_FORMATS

DEVICES: dict[str, type[CpuDevice] | type[AscendDevice]] = {"cpu": CpuDevice, "ascend": AscendDevice}


class MindSporeExecutor:
    """See `executors.base.Executor`."""

    name = "mindspore"
    prompt_numerics = 0

    def __init__(self, config: ModelConfig, weights: WeightLoader, *, options: MindSporeOptions, cache: CacheSize) -> None:
        self.warnings: tuple[str, ...] = ()
        self._device: Any = DEVICES[options.device](config, options, cache)
        self._limits = StepLimits(max_rows=cache.max_step_tokens, num_pages=cache.num_pages, vocab_size=config.vocab_size)
        self._padder = Padder(cache.max_step_tokens, pages_for(cache.context_length), cache.num_pages)
        self.choices: tuple[Choice, ...] = (
            Choice("device", options.device, f"asked for; MindSpore {ms.__version__}"),
            *self._device.choices,
            Choice(
                "graphs", f"of {', '.join(map(str, self._padder.sizes))} rows", "compiled when first needed, never again as a context grows"
            ),
        )
        model: Model[Any] = assemble(config, lambda name: self._device.load(weights, name), context_length=cache.context_length)
        self._trace = trace(model)
        self._graphs: dict[tuple[tuple[int, int], bool], Callable[..., tuple[Tensor, Tensor]]] = {}
        self._trees: Step | None = None  # the newest step that had draft trees, of which `copy_slots` keeps paths
        matrices = [weight for layer in model.layers for weight in layer.parameters]
        self.weight_bytes = sum(int(weight.nbytes) for weight in (*matrices, model.norm, model.head))
        self.kv_bytes = int(self._device.kv_bytes)

    def run(self, step: Step) -> StepResult:
        check_step(step, self._limits)
        if step.ancestors_T is None:
            return self._run_chains(step)
        self._trees = step
        logits, hidden = (
            np.empty((len(step.logit_rows_R), columns), np.float32) for columns in (self._trace.logits.columns, self._trace.hidden.columns)
        )
        for chains, places_R in path_steps(step):
            result = self._run_chains(chains)
            logits[places_R] = result.logits
            if result.hidden is not None:
                hidden[places_R] = result.hidden
        return StepResult(logits, hidden=hidden if step.wants_hidden else None)

    def _run_chains(self, step: Step) -> StepResult:
        """A step without draft trees."""
        padded = self._padder.pad(step)
        kind = padded.size, self._device.has_past(step)
        if kind not in self._graphs:
            self._graphs[kind] = self._device.graph(padded.size, has_past=kind[1]).compiled(self._trace)
        results = self._graphs[kind](*map(Tensor, padded.arrays))
        logits, hidden = (out.asnumpy()[: len(step.logit_rows_R)] for out in results)
        return StepResult(logits, hidden=hidden if step.wants_hidden else None)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Padded rows and rows of logits of each graph, in the order in which they were made."""
        return [size for size, _ in self._graphs]

    def copy_slots(self, pages: np.ndarray, *, start: int, rows: np.ndarray) -> None:
        self._run_chains(kept_path_step(self._trees, pages, start=start, rows=rows))

    def copy_pages(self, sources: np.ndarray, targets: np.ndarray) -> None:
        self._device.copy_pages(sources, targets)

    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None:
        self._device.randomize_pages(pages, seed=seed)

    def close(self) -> None:
        del self._graphs, self._trace, self._device


class MindSporeBackend:
    """See `executors.backend.Backend`."""

    name = "mindspore"
    options = MindSporeOptions
    capabilities = Capabilities(
        weight_formats=frozenset(STORAGE_FORMATS),
        kv_formats=frozenset(KV_FORMATS),
        devices=frozenset(DEVICES),
        isas=frozenset((None, *USABLE_ISAS)),
        compressed_format=AS_CACHE,
    )

    def resolve(
        self, preferences: Preferences, config: ModelConfig, formats: Iterable[str] | None
    ) -> tuple[MindSporeOptions, tuple[Choice, ...]]:
        """See `Backend.resolve`."""
        threads = choose_threads(preferences)
        kv_format = asked_or(preferences.kv_format, HALF_CACHE)
        options = MindSporeOptions(
            kv_format=kv_format.value, device=preferences.device or "cpu", threads=int(threads.value), isa=preferences.isa
        )
        return options, (threads, kv_format)

    def weight_bytes(self, format_name: str, shape: tuple[int, ...], options: MindSporeOptions) -> int:
        return weight_bytes(format_name, shape)

    def free_memory(self, options: MindSporeOptions) -> int | None:
        return available_memory() if options.device == "cpu" else None

    def create(self, config: ModelConfig, weights: WeightLoader, *, options: MindSporeOptions, cache: CacheSize) -> MindSporeExecutor:
        return MindSporeExecutor(config, weights, options=options, cache=cache)


BACKEND = MindSporeBackend()
