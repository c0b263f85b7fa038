"""Runs the forward pass in eager torch. Weights are dequantized once, to float32 or bfloat16 on the device."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from minicpm4.errors import UnsupportedError
from minicpm4.executors.backend import Preferences, choose_threads
from minicpm4.executors.base import HALF_CACHE, CacheSize, Capabilities, StepResult, ThreadedOptions, WeightLoader, asked_or
from minicpm4.executors.torch.cache import PagedCache
from minicpm4.executors.torch.loading import Loader, choose_products
from minicpm4.executors.torch.ops import TorchOps
from minicpm4.executors.torch.paged import PagedAttention
from minicpm4.executors.torch.settings import own_settings
from minicpm4.executors.torch.weights import Weight
from minicpm4.hardware import Choice, available_memory
from minicpm4.model import PAGE_TOKENS, Model, ModelConfig, Segment, Step, forward, make_step
from minicpm4.model.sparse_step import plan_sparse
from minicpm4.model.step import StepLimits, check_step, whole_pages_step
from minicpm4.model.tensors import STORAGE_FORMATS

KV_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # how torch's allocators say it, of CUDA and of the CPU


@dataclass(frozen=True, kw_only=True)
class TorchOptions(ThreadedOptions):
    """threads: of the CPU. device: "cpu" or "cuda". dtype: of weights and activations, "f32" or "bf16"; logits are float32, of sums
    that were rounded to it."""

    dtype: str = "f32"


def slots_of(pages: np.ndarray, indices: np.ndarray) -> torch.Tensor:
    """Where cached tokens of a sequence with these pages lie, int64."""
    return torch.from_numpy(pages[indices // PAGE_TOKENS].astype(np.int64) * PAGE_TOKENS + indices % PAGE_TOKENS)


def check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError("torch finds no CUDA device", hint="use --device cpu, or install a CUDA build of torch")


class TorchExecutor:
    """See `executors.base.Executor`."""

    name = "torch"
    prompt_numerics = 0

    def __init__(self, config: ModelConfig, weights: WeightLoader, *, options: TorchOptions, cache: CacheSize) -> None:
        check_device(options.device)
        self.config, self.options = config, options
        self._device, dtype = torch.device(options.device), DTYPES[options.dtype]
        self.warnings: tuple[str, ...] = ()
        self._limits = StepLimits(max_rows=cache.max_step_tokens, num_pages=cache.num_pages, vocab_size=config.vocab_size)
        products = choose_products(dtype, self._device)
        self.choices: tuple[Choice, ...] = (Choice("device", options.device, f"asked for; torch {torch.__version__}"), products)
        loader = Loader(config, weights, dtype=dtype, device=self._device, products=products.value)
        with self._settings():
            self._model: Model[Weight] = loader.model(cache.context_length)
        self._newest = loader.newest
        self._cache = PagedCache.empty(
            config, cache.num_pages, dtype=KV_DTYPES[options.kv_format], device=self._device, sparse=cache.sparse
        )
        self._attention = PagedAttention(self._cache)
        matrices = [weight for layer in self._model.layers for weight in layer.parameters]
        self.weight_bytes = sum(weight.nbytes for weight in (*matrices, self._model.norm, self._model.head))
        self.kv_bytes = sum(stored.nbytes for stored in self._cache.stores)

    def _settings(self) -> AbstractContextManager[None]:
        return own_settings(threads=self.options.threads, device=self._device)

    def run(self, step: Step) -> StepResult:
        check_step(step, self._limits)
        with self._settings(), torch.inference_mode():
            outputs = forward(TorchOps(self.config, self._attention), self._model, self._attention.inputs(step))
            self._newest.forget()
            logits, hidden = (x.float().cpu().numpy() for x in outputs)
        return StepResult(logits, hidden=hidden if step.wants_hidden else None)

    def copy_slots(self, pages: np.ndarray, *, start: int, rows: np.ndarray) -> None:
        targets, sources = (slots_of(pages, start + offsets).to(self._device) for offsets in (np.arange(len(rows)), rows))
        for stored in (self._cache.keys, self._cache.values):
            stored[:, targets] = stored[:, sources]
        if self._cache.compressed is not None:
            segment = Segment(tokens=[0] * len(rows), start=start, pages=pages, num_logits=0)  # type: ignore[arg-type]
            self._cache.compress(plan_sparse(self._cache.compressed.sparse, make_step([segment])))

    def copy_pages(self, sources: np.ndarray, targets: np.ndarray) -> None:
        source_pages, target_pages = (torch.from_numpy(pages).to(self._device, torch.int64) for pages in (sources, targets))
        for stored in self._cache.stores:
            pages = stored.unflatten(1, (self._cache.num_pages, -1))
            pages[:, target_pages] = pages[:, source_pages]

    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None:
        generator = torch.Generator(self._device).manual_seed(seed)
        for page in pages.tolist():
            slots = slice(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS)
            for stored in (self._cache.keys, self._cache.values):
                shape = stored[:, slots].shape
                stored[:, slots] = torch.randn(shape, generator=generator, device=self._device).to(stored.dtype)
        if self._cache.compressed is not None:
            self._cache.compress(plan_sparse(self._cache.compressed.sparse, whole_pages_step(pages)))

    def close(self) -> None:
        del self._model, self._cache, self._attention
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
        dtypes=frozenset(DTYPES),
        compressed_format="f32",
    )

    def resolve(
        self, preferences: Preferences, config: ModelConfig, formats: Iterable[str] | None
    ) -> tuple[TorchOptions, tuple[Choice, ...]]:
        """See `Backend.resolve`."""
        threads = choose_threads(preferences)
        dtype = asked_or(preferences.dtype, Choice("dtype", "f32", "as exact as the reference"))
        as_computed = Choice("kv cache", "bf16", "as it is computed with: no conversion")
        kv_format = asked_or(preferences.kv_format, as_computed if dtype.value == "bf16" else HALF_CACHE)
        options = TorchOptions(kv_format=kv_format.value, device=preferences.device or "cpu", threads=int(threads.value), dtype=dtype.value)
        return options, (threads, dtype, kv_format)

    def weight_bytes(self, format_name: str, shape: tuple[int, ...], options: TorchOptions) -> int:
        """Of the dtype, whatever the format was."""
        return math.prod(shape) * DTYPES[options.dtype].itemsize

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
