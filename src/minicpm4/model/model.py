"""A model's parameters by role, in whatever form an executor keeps them.

`assemble` is the only place where a parameter's name meets its role.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Generic

from minicpm4.model.config import ModelConfig
from minicpm4.model.ops import Weight
from minicpm4.model.parameters import EMBEDDING, HEAD, LAYER_ROLES, NORM, layer_parameter, parameter_shapes
from minicpm4.model.rope import RopeTable, rope_table


@dataclass(frozen=True)
class Layer(Generic[Weight]):
    """One transformer block; matrices are [out features, in features]."""

    attention_norm: Weight
    q: Weight
    k: Weight
    v: Weight
    o: Weight
    mlp_norm: Weight
    gate: Weight
    up: Weight
    down: Weight


@dataclass(frozen=True)
class Model(Generic[Weight]):
    """Everything that `forward` reads; `head` is the same object as `embedding` when the config ties them."""

    config: ModelConfig
    rope: RopeTable
    embedding: Weight
    layers: tuple[Layer[Weight], ...]
    norm: Weight
    head: Weight


def assemble(config: ModelConfig, load: Callable[[str], Weight], *, context_length: int) -> Model[Weight]:
    """Calls load(name) once for each parameter, the largest first: who keeps another form of them holds one of them twice, and this
    should be a small one by the time when all others are there.
    """
    shapes = parameter_shapes(config)
    loaded = {name: load(name) for name in sorted(shapes, key=lambda name: -prod(shapes[name]))}
    layers = tuple(Layer(**{role: loaded[layer_parameter(index, role)] for role in LAYER_ROLES}) for index in range(config.num_layers))
    embedding = loaded[EMBEDDING]
    head = embedding if config.has_tied_head else loaded[HEAD]
    return Model(config, rope_table(config, context_length), embedding, layers, loaded[NORM], head)
