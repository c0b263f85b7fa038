"""Runs the forward pass in numpy. Weights are dequantized once and kept as float32: four bytes a weight, whatever the file holds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from minicpm4.executors.backend import Preferences
from minicpm4.executors.base import HALF_CACHE, BackendOptions, CacheSize, Capabilities, StepResult, WeightLoader, asked_or
from minicpm4.executors.reference.ops import ReferenceCache, ReferenceOps, ReferenceWeight
from minicpm4.hardware import Choice, available_memory
from minicpm4.model import PAGE_TOKENS, Model, ModelConfig, Step, assemble, forward
from minicpm4.model.parameters import EMBEDDING, HEAD
from minicpm4.model.step import StepLimits, check_step
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import KV_FORMATS, dequantize, round_bf16
from minicpm4.quant.activations import meets_bf16

BF16_ROWS = 1  # the tag of rows that meet weights in bfloat16


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions(BackendOptions):
    """activations other than "f32" round the inputs of low-bit weights as the integer kernels do. prompt_activations: "same", or "bf16",
    which rounds what meets in a layer's products for rows of prompts; not the head's."""

    activations: str = "f32"
    prompt_activations: str = "same"


class ReferenceExecutor:
    """See `executors.base.Executor`."""

    name = "reference"

    def __init__(self, config: ModelConfig, weights: WeightLoader, *, options: ReferenceOptions, cache: CacheSize) -> None:
        def load(name: str) -> ReferenceWeight:
            tensor = weights(name)
            values, is_low_bit = dequantize(tensor), not tensor.format.is_dense
            is_product = len(tensor.shape) == 2 and name not in (EMBEDDING, HEAD)
            has_bf16 = options.prompt_activations == "bf16" and is_product and meets_bf16(tensor.format, tensor.shape[1])
            return ReferenceWeight(values, is_low_bit, round_bf16(values) if has_bf16 else None)

        self.choices: tuple[Choice, ...] = ()
        self.warnings: tuple[str, ...] = ()
        self.config, self.sparse, self.activations = config, cache.sparse, options.activations
        self._model: Model[ReferenceWeight] = assemble(config, load, context_length=cache.context_length)
        self._cache = ReferenceCache.empty(config, cache.num_pages, options.kv_format)
        self.prompt_numerics = BF16_ROWS if options.prompt_activations == "bf16" else 0
        self._limits = StepLimits(
            max_rows=cache.max_step_tokens,
            num_pages=cache.num_pages,
            vocab_size=config.vocab_size,
            numerics={0, self.prompt_numerics},
        )
        matrices = [weight for layer in self._model.layers for weight in layer.parameters]
        self.weight_bytes = sum(weight.values.nbytes for weight in (*matrices, self._model.norm, self._model.head))
        self.kv_bytes = self._cache.keys.nbytes + self._cache.values.nbytes

    def run(self, step: Step) -> StepResult:
        check_step(step, self._limits)
        is_bf16_T = (step.numerics_S == BF16_ROWS)[step.sequences_T]
        ops = ReferenceOps(self.config, self._cache, activations=self.activations, sparse=self.sparse, is_bf16_T=is_bf16_T)
        logits, hidden = forward(ops, self._model, step)
        return StepResult(logits, hidden=hidden if step.wants_hidden else None)

    def copy_slots(self, pages: np.ndarray, *, start: int, rows: np.ndarray) -> None:
        for stored in (self._cache.keys, self._cache.values):
            for target, source in enumerate(rows.tolist()):
                stored[:, *place_of(pages, start + target)] = stored[:, *place_of(pages, start + source)]

    def copy_pages(self, sources: np.ndarray, targets: np.ndarray) -> None:
        for stored in (self._cache.keys, self._cache.values):
            stored[:, targets] = stored[:, sources]

    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None:
        random = np.random.default_rng(seed)
        for stored in (self._cache.keys, self._cache.values):
            stored[:, pages] = random.standard_normal(stored[:, pages].shape, dtype=np.float32)

    def close(self) -> None:
        del self._model, self._cache


def place_of(pages: np.ndarray, index: int) -> tuple[int, int]:
    """Page and offset in it of a sequence's cached token."""
    return int(pages[index // PAGE_TOKENS]), index % PAGE_TOKENS


class ReferenceBackend:
    """See `executors.backend.Backend`."""

    name = "reference"
    options = ReferenceOptions
    capabilities = Capabilities(
        weight_formats=frozenset(STORAGE_FORMATS),
        kv_formats=frozenset(KV_FORMATS),
        activations=frozenset(("int8", "int16", "f32")),
        bf16_isas=frozenset((None,)),
    )

    def resolve(
        self, preferences: Preferences, config: ModelConfig, formats: Iterable[str] | None
    ) -> tuple[ReferenceOptions, tuple[Choice, ...]]:
        """Floats throughout, unless rounding was asked for."""
        activations = asked_or(preferences.activations, Choice("activations", "f32", "the executor computes in floats"))
        prompts = asked_or(preferences.prompt_activations, Choice("prompt activations", "same", "the executor computes in floats"))
        kv_format = asked_or(preferences.kv_format, HALF_CACHE)
        options = ReferenceOptions(
            kv_format=kv_format.value,
            device=preferences.device or "cpu",
            activations=activations.value,
            prompt_activations=prompts.value,
        )
        return options, (activations, prompts, kv_format)

    def weight_bytes(self, format_name: str, shape: tuple[int, ...], options: ReferenceOptions) -> int:
        """float32, whatever the format was."""
        return 4 * math.prod(shape)

    def free_memory(self, options: ReferenceOptions) -> int | None:
        return available_memory()

    def create(self, config: ModelConfig, weights: WeightLoader, *, options: ReferenceOptions, cache: CacheSize) -> ReferenceExecutor:
        return ReferenceExecutor(config, weights, options=options, cache=cache)


BACKEND = ReferenceBackend()
