"""The same function in a wider shape, so that every row is whole blocks of any format: zeros where nothing was.

Knows the parameters of a model by their roles; nothing of formats but the width that they ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from minicpm4.model import ModelConfig
from minicpm4.model.parameters import parameter_shapes

ValueLoader = Callable[[str], np.ndarray]


def padded_model(config: ModelConfig, values: ValueLoader, *, multiple: int) -> tuple[ModelConfig, ValueLoader]:
    """A config whose matrices have columns in that multiple, and its parameters; the logits are those of the model given.

    New hidden columns stay zero. A norm divides by the root of a mean over more columns, so its weight and epsilon shrink alike.
    New heads have keys and values of zero, and come with a key head of their own, since query heads follow their key heads' order.
    """
    hidden, inner = round_up(config.hidden_size, multiple), round_up(config.intermediate_size, multiple)
    group = config.num_heads // config.num_kv_heads
    kv_heads = config.num_kv_heads
    while kv_heads * group * config.head_dim % multiple:
        kv_heads += 1
    share = config.hidden_size / hidden
    padded = replace(
        config,
        hidden_size=hidden,
        intermediate_size=inner,
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        norm_eps=config.norm_eps * share,
    )
    shapes = parameter_shapes(padded)

    def load(name: str) -> np.ndarray:
        given, shape = values(name), shapes[name]
        out = np.zeros(shape, np.float32)
        out[tuple(slice(size) for size in given.shape)] = given * np.float32(share**0.5) if len(shape) == 1 else given
        return out

    return padded, load


def round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
