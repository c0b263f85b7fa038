"""Runs the forward pass in numpy. Weights are dequantized once and kept as float32: four bytes a weight, whatever the file holds."""

from __future__ import annotations

import math

import numpy as np

from minicpm4.executors.base import Capabilities, ExecutorOptions, WeightLoader
from minicpm4.executors.reference.ops import ReferenceCache, ReferenceOps, ReferenceWeight
from minicpm4.hardware import Choice, available_memory
from minicpm4.model import STORAGE_FORMATS, Model, ModelConfig, Step, assemble, forward
from minicpm4.model.parameters import EMBEDDING, HEAD
from minicpm4.quant import KV_FORMATS, dequantize, round_bf16
from minicpm4.quant.activations import meets_bf16

CAPABILITIES = Capabilities(
    weight_formats=frozenset(STORAGE_FORMATS),
    kv_formats=frozenset(KV_FORMATS),
    activations=frozenset(("int8", "int16", "f32")),
    devices=frozenset(("cpu",)),
    bf16_isas=frozenset((None,)),
)


def weight_bytes(format_name: str, shape: tuple[int, ...]) -> int:
    """What a weight takes once loaded: float32, whatever its format was."""
    return 4 * math.prod(shape)


def free_memory(device: str) -> int | None:
    """Bytes that can be allocated; None where the system does not say."""
    return available_memory()


class ReferenceExecutor:
    """See `executors.base.Executor`. activations other than f32 round the inputs of low-bit weights as the integer kernels do;
    prompts in bfloat16 round what meets in a layer's products, not the head's, which is for wanted rows."""

    name = "reference"
    warnings = ()
    peaks = None

    def __init__(self, config: ModelConfig, weights: WeightLoader, options: ExecutorOptions) -> None:
        def load(name: str) -> ReferenceWeight:
            tensor = weights(name)
            values, is_low_bit = dequantize(tensor), not tensor.format.is_dense
            is_product = len(tensor.shape) == 2 and name not in (EMBEDDING, HEAD)
            has_bf16 = options.prompt_activations == "bf16" and is_product and meets_bf16(tensor.format, tensor.shape[1])
            return ReferenceWeight(values, is_low_bit, round_bf16(values) if has_bf16 else None)

        self.choices: tuple[Choice, ...] = ()
        self._model: Model[ReferenceWeight] = assemble(config, load, context_length=options.context_length)
        self._cache = ReferenceCache.empty(config, options.num_pages, options.kv_format)
        self._ops = ReferenceOps(config, self._cache, activations=options.activations, sparse=options.sparse)
        matrices = [weight for layer in self._model.layers for weight in layer.parameters]
        self.weight_bytes = sum(weight.values.nbytes for weight in (*matrices, self._model.norm, self._model.head))
        self.kv_bytes = self._cache.keys.nbytes + self._cache.values.nbytes

    def run(self, step: Step) -> np.ndarray:
        self._ops.are_prompt_T = np.repeat(step.is_prompt_S.astype(bool), np.diff(step.starts_S1))
        return forward(self._ops, self._model, step)

    def copy_pages(self, sources: np.ndarray, targets: np.ndarray) -> None:
        for stored in (self._cache.keys, self._cache.values):
            stored[:, targets] = stored[:, sources]

    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None:
        random = np.random.default_rng(seed)
        for stored in (self._cache.keys, self._cache.values):
            stored[:, pages] = random.standard_normal(stored[:, pages].shape, dtype=np.float32)

    def close(self) -> None:
        del self._model, self._cache, self._ops


def create(config: ModelConfig, weights: WeightLoader, options: ExecutorOptions) -> ReferenceExecutor:
    return ReferenceExecutor(config, weights, options)
