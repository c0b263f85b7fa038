"""Runs the forward pass in eager torch. Weights are dequantized once to float32 on the device."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from minicpm4.errors import UnsupportedError
from minicpm4.executors.backend import Preferences
from minicpm4.executors.base import (
    HALF_CACHE,
    BackendOptions,
    CacheSize,
    Capabilities,
    StepResult,
    WeightLoader,
    asked_or,
    check_size,
)
from minicpm4.executors.torch.ops import TorchCache, TorchOps, TorchStep
from minicpm4.executors.torch.sparse import KernelStore
from minicpm4.hardware import Choice, available_memory, num_cores
from minicpm4.model import PAGE_TOKENS, Model, ModelConfig, Segment, Step, assemble, forward, make_step
from minicpm4.model.linear_step import linearize
from minicpm4.model.sparse_step import plan_sparse
from minicpm4.model.step import StepLimits, check_step, whole_pages_step
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import dequantize

KV_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
TREE_PAGES = 256
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # how torch's allocators say it, of CUDA and of the CPU


@dataclass(frozen=True, kw_only=True)
class TorchOptions(BackendOptions):
    """threads: of the CPU. device: "cpu" or "cuda"."""

    threads: int = 1

    def __post_init__(self) -> None:
        check_size("threads", self.threads)


def slots_of(pages: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Where cached tokens of a sequence with these pages lie, int64."""
    slots: np.ndarray = pages[indices // PAGE_TOKENS].astype(np.int64) * PAGE_TOKENS + indices % PAGE_TOKENS
    return slots


def check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError("torch finds no CUDA device", hint="use --device cpu, or install a CUDA build of torch")


class TorchExecutor:
    """See `executors.base.Executor`."""

    name = "torch"
    prompt_numerics = 0

    def __init__(self, config: ModelConfig, weights: WeightLoader, *, options: TorchOptions, cache: CacheSize) -> None:
        check_device(options.device)
        torch.set_num_threads(options.threads)
        torch.set_float32_matmul_precision("highest")  # float32 is float32, on CUDA too: no TF32 where it was allowed before
        self.config = config
        self._device, self._num_pages = torch.device(options.device), cache.num_pages
        self.warnings: tuple[str, ...] = ()
        self._limits = StepLimits(max_rows=cache.max_step_tokens, num_pages=cache.num_pages, vocab_size=config.vocab_size)
        self.choices: tuple[Choice, ...] = (Choice("device", options.device, f"asked for; torch {torch.__version__}"),)
        self._model: Model[torch.Tensor] = assemble(
            config, lambda name: torch.from_numpy(dequantize(weights(name))).to(self._device), context_length=cache.context_length
        )
        self._cache = TorchCache.empty(config, cache.num_pages, dtype=KV_DTYPES[options.kv_format], device=self._device)
        self._kernels = None
        if cache.sparse is not None:
            self._kernels = KernelStore.empty(config, cache.sparse, num_pages=cache.num_pages, device=self._device)
        self._ops = TorchOps(config, self._cache, self._kernels)
        matrices = [weight for layer in self._model.layers for weight in layer.parameters]
        self.weight_bytes = sum(weight.nbytes for weight in (*matrices, self._model.norm, self._model.head))
        self.kv_bytes = sum(stored.nbytes for stored in self._stores())

    def _stores(self) -> tuple[torch.Tensor, ...]:
        """All that is kept of pages: [layers, as many rows of each page, G, D]."""
        return (self._cache.keys, self._cache.values, *(() if self._kernels is None else self._kernels.stores))

    def run(self, step: Step) -> StepResult:
        check_step(step, self._limits)
        linear = None
        if step.ancestors_T is not None:
            linear = linearize(step, self._tree_pages())
            self.copy_pages(linear.sources, linear.targets)
            step = linear.step
        with torch.inference_mode():
            sparse = None if self._kernels is None else self._kernels.sparse
            inputs = TorchStep.of(step, self._device, sparse=sparse, linear=linear)
            logits, hidden = (x.float().cpu().numpy() for x in forward(self._ops, self._model, inputs))
        return StepResult(logits, hidden=hidden if step.wants_hidden else None)

    def _tree_pages(self) -> range:
        """Pages behind the cache's own, for the branches of draft trees; made when first needed."""
        if self._num_pages == self._limits.num_pages:
            self._num_pages += TREE_PAGES
            self._cache = self._cache.extended(TREE_PAGES * PAGE_TOKENS)
            if self._kernels is not None:
                self._kernels = self._kernels.extended(TREE_PAGES)
            self._ops = TorchOps(self.config, self._cache, self._kernels)
        return range(self._limits.num_pages, self._num_pages)

    def copy_slots(self, pages: np.ndarray, *, start: int, rows: np.ndarray) -> None:
        targets, sources = (torch.from_numpy(slots_of(pages, start + offsets)) for offsets in (np.arange(len(rows)), rows))
        for stored in (self._cache.keys, self._cache.values):
            stored[:, targets.to(self._device)] = stored[:, sources.to(self._device)]
        if self._kernels is not None:
            segment = Segment(tokens=[0] * len(rows), start=start, pages=pages, num_logits=0)  # type: ignore[arg-type]
            plan = plan_sparse(self._kernels.sparse, make_step([segment]))
            for layer, keys in enumerate(self._cache.keys):
                self._kernels.write(layer, keys, plan)

    def copy_pages(self, sources: np.ndarray, targets: np.ndarray) -> None:
        source_pages, target_pages = (torch.from_numpy(pages).to(self._device, torch.int64) for pages in (sources, targets))
        for stored in self._stores():
            pages = stored.unflatten(1, (self._num_pages, -1))
            pages[:, target_pages] = pages[:, source_pages]

    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None:
        generator = torch.Generator(self._device).manual_seed(seed)
        for page in pages.tolist():
            slots = slice(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS)
            for stored in (self._cache.keys, self._cache.values):
                shape = stored[:, slots].shape
                stored[:, slots] = torch.randn(shape, generator=generator, device=self._device).to(stored.dtype)
        if self._kernels is not None:
            plan = plan_sparse(self._kernels.sparse, whole_pages_step(pages))
            for layer, keys in enumerate(self._cache.keys):
                self._kernels.write(layer, keys, plan)

    def close(self) -> None:
        del self._model, self._cache, self._kernels, self._ops
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # else torch keeps it for itself, and `free_memory` counts it as taken


class TorchBackend:
    """See `executors.backend.Backend`."""

    name = "torch"
    options = TorchOptions
    capabilities = Capabilities(
        weight_formats=frozenset(STORAGE_FORMATS),
        kv_formats=frozenset(KV_DTYPES),
        devices=frozenset(("cpu", "cuda")),
        compressed_format="f32",
    )

    def resolve(
        self, preferences: Preferences, config: ModelConfig, formats: Iterable[str] | None
    ) -> tuple[TorchOptions, tuple[Choice, ...]]:
        """See `Backend.resolve`."""
        threads = asked_or(
            None if preferences.threads is None else str(preferences.threads), Choice("threads", str(num_cores()), "one a core")
        )
        kv_format = asked_or(preferences.kv_format, HALF_CACHE)
        options = TorchOptions(kv_format=kv_format.value, device=preferences.device or "cpu", threads=int(threads.value))
        return options, (threads, kv_format)

    def weight_bytes(self, format_name: str, shape: tuple[int, ...], options: TorchOptions) -> int:
        """float32, whatever the format was."""
        return 4 * math.prod(shape)

    def free_memory(self, options: TorchOptions) -> int | None:
        check_device(options.device)
        return torch.cuda.mem_get_info()[0] if options.device == "cuda" else available_memory()

    def create(self, config: ModelConfig, weights: WeightLoader, *, options: TorchOptions, cache: CacheSize) -> TorchExecutor:
        """MemoryError where torch runs out of it."""
        try:
            return TorchExecutor(config, weights, options=options, cache=cache)
        except RuntimeError as error:
            if any(words in str(error) for words in OUT_OF_MEMORY):
                raise MemoryError(str(error).splitlines()[0]) from error
            raise


BACKEND = TorchBackend()
