"""Random weights of a given shape and format, for measuring speed where no checkpoint of that shape is to be had.

Values are normal with the spread that keeps activations near one, so that no kernel meets unusual numbers. Knows nothing of
quality: what such a model says is noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from minicpm4.checkpoint.json_file import read_json
from minicpm4.errors import ConfigError
from minicpm4.model import ModelConfig, PackedTensor
from minicpm4.model.config import SparseConfig
from minicpm4.model.hf_config import config_from_hf
from minicpm4.model.parameters import EMBEDDING, HEAD, parameter_shapes
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import quantize

SHAPES = {
    "0.5B": ModelConfig(
        vocab_size=73448, hidden_size=1024, intermediate_size=4096, num_layers=24, num_heads=16, num_kv_heads=2, head_dim=64,
        context_length=32768, embedding_scale=12.0, residual_scale=1.4 / 24**0.5, logit_divisor=4.0, has_tied_head=True,
        sparse=SparseConfig(),
    ),
    "8B": ModelConfig(
        vocab_size=73448, hidden_size=4096, intermediate_size=16384, num_layers=32, num_heads=32, num_kv_heads=2, head_dim=128,
        context_length=32768, norm_eps=1e-6, embedding_scale=12.0, residual_scale=1.4 / 32**0.5, logit_divisor=16.0,
        sparse=SparseConfig(),
    ),
}  # fmt: skip
SAMPLE_ROWS = 64  # rows that are drawn and quantized; larger matrices repeat them


def shape_config(shape: str, *, context_length: int) -> ModelConfig:
    """MiniCPM4-0.5B or -8B with the published scales, or the model that a config.json describes; made for so many tokens.

    shape: `0.5B`, `8B`, or the path of a config.json. ConfigError, CheckpointError where it is none of these.
    """
    config = SHAPES.get(shape)
    if config is None and not Path(shape).is_file():
        raise ConfigError(f"there is no shape {shape!r:.200}", hint=f"choose {' or '.join(SHAPES)}, or give a config.json")
    return replace(config or config_from_hf(read_json(Path(shape)))[0], context_length=context_length)


def head_format_for(format_name: str) -> str:
    """Format of embedding and head beside projections of that format: published low-bit files keep them at six bits."""
    return format_name if STORAGE_FORMATS[format_name].bits_per_weight >= 6 else "q6_k"


def random_weights(config: ModelConfig, format_name: str, *, seed: int) -> tuple[Callable[[str], PackedTensor], frozenset[str]]:
    """A loader of random parameters, and the formats that it gives.

    Norms are f32; a matrix whose rows are not whole blocks of the format is q8_0, or f16 if they are no blocks of that either.
    """
    if format_name not in STORAGE_FORMATS:
        raise ConfigError(f"there is no format {format_name!r}", hint=f"choose one of {', '.join(STORAGE_FORMATS)}")
    shapes = parameter_shapes(config)

    def format_of(name: str) -> str:
        columns = shapes[name][-1]
        if len(shapes[name]) == 1:
            return "f32"
        wanted = head_format_for(format_name) if name in (EMBEDDING, HEAD) else format_name
        return next(choice for choice in (wanted, "q8_0", "f16") if columns % STORAGE_FORMATS[choice].block_elements == 0)

    def load(name: str) -> PackedTensor:
        shape = shapes[name]
        if len(shape) == 1:
            return quantize(np.ones(shape, np.float32), "f32", name=name)
        random = np.random.default_rng([seed, list(shapes).index(name)])
        sample = random.standard_normal((min(SAMPLE_ROWS, shape[0]), shape[1]), dtype=np.float32) * np.float32(shape[1] ** -0.5)
        packed = quantize(sample, format_of(name), name=name)
        data = np.resize(packed.data, (shape[0], packed.data.shape[1]))
        return PackedTensor(name, packed.format, shape, data)

    return load, frozenset(format_of(name) for name in shapes)
