"""Small models with random weights, and steps for them; shared by the tests of executors and engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest

from minicpm4.errors import UnsupportedError
from minicpm4.executors import CacheSize, Executor, backend, create_executor
from minicpm4.executors.base import BackendOptions
from minicpm4.model import ModelConfig, PackedTensor, Segment, Step, make_step
from minicpm4.model.config import RopeConfig
from minicpm4.model.parameters import EMBEDDING, parameter_shapes
from minicpm4.quant import quantize

MINDSPORE = pytest.param("mindspore", marks=pytest.mark.mindspore)
CUDA = pytest.param("torch-cuda", marks=pytest.mark.cuda)
NAMES = ("reference", "native", "torch", MINDSPORE)  # of all executors, to parametrize tests with
EXECUTORS = (*NAMES, CUDA)  # what `toy_executor` makes with its own settings
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.cuda))  # of torch
VARIANTS = {"cuda": "device", "int8": "activations", "int16": "activations"}

TOY = ModelConfig(
    vocab_size=97,
    hidden_size=96,
    intermediate_size=160,
    num_layers=3,
    num_heads=8,
    num_kv_heads=1,
    head_dim=24,
    context_length=512,
    rope=RopeConfig(10000.0),
    embedding_scale=3.0,
    residual_scale=0.4,
    logit_divisor=1.5,
)
POISON = 96  # a token that prompts do not use


def toy_config(**changes: object) -> ModelConfig:
    """TOY (GQA of 8, sizes that are no powers of two) with some fields changed."""
    return replace(TOY, **changes)  # type: ignore[arg-type]


def scales_of(config: ModelConfig) -> tuple[float, float, float]:
    """MiniCPM's three; ones are a plain Llama's."""
    return config.embedding_scale, config.residual_scale, config.logit_divisor


def toy_weights(config: ModelConfig, *, seed: int = 0, format_name: str = "f32") -> dict[str, PackedTensor]:
    """Random parameters of a spread that keeps activations near one; norms are always f32."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        values = random.standard_normal(shape, dtype=np.float32)
        is_norm = len(shape) == 1
        values = 1 + 0.1 * values if is_norm else values * np.float32(shape[-1] ** -0.5)
        weights[name] = quantize(values, "f32" if is_norm else format_name, name=name)
    return weights


def poisoned_weights(config: ModelConfig) -> dict[str, PackedTensor]:
    """Those of `toy_weights`, but that POISON's embedding is NaN, and so all that is computed and stored of it."""
    weights = toy_weights(config)
    table = np.array(weights[EMBEDDING].data.view(np.float32))
    table[POISON] = np.nan
    return {**weights, EMBEDDING: quantize(table, "f32", name=EMBEDDING)}


def executor_options(name: str, **options: object) -> tuple[BackendOptions, CacheSize]:
    """The options of the executor of that name, and its cache, from fields of both. Threads, and activations in f32, go to those that
    have such options."""
    kind = backend(name).options
    own, sizes = ({field.name for field in fields(each)} for each in (kind, CacheSize))
    everywhere = {"threads"} | ({"activations"} if options.get("activations") == "f32" else set())
    unknown = options.keys() - own - sizes - everywhere
    if unknown:
        raise UnsupportedError(f"executor {name} has no {unknown}", hint="leave it out")
    chosen = kind(**{field: value for field, value in options.items() if field in own})  # type: ignore[arg-type]
    return chosen, CacheSize(**{field: value for field, value in options.items() if field in sizes})  # type: ignore[arg-type]


def toy_executor(name: str, config: ModelConfig, weights: dict[str, PackedTensor], **options: object) -> Executor:
    """name: an executor's, or one with its device or its activations behind, such as torch-cuda or native-int8."""
    name, _, variant = name.partition("-")
    given = {"context_length": config.context_length, "num_pages": 16, "kv_format": "f32", "threads": 2, **options}
    given |= {VARIANTS[variant]: variant} if variant else {}
    chosen, cache = executor_options(name, **given)
    formats = {tensor.format.name for tensor in weights.values()}
    return create_executor(name, config, weights.__getitem__, options=chosen, cache=cache, formats=formats)


def logits_of(executor: Executor, step: Step) -> np.ndarray:
    """The step's logits, which stay what they are."""
    return executor.run(step).logits.copy()


def plan_step(parts: Sequence[tuple[Sequence[int], int, Sequence[int]]], *, wants_all: bool = True, prompts: Sequence[int] = ()) -> Step:
    """A ragged step. Each part: the tokens to run, the position of the first, and the sequence's page ids. prompts: the parts with the
    numerics of prompts, tag 1."""
    return make_step(
        [
            Segment(tokens=tokens, start=start, pages=pages, num_logits=len(tokens) if wants_all else 1, numerics=int(part in prompts))
            for part, (tokens, start, pages) in enumerate(parts)
        ]
    )
