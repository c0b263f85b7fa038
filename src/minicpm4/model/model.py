"""A model's parameters by role, in whatever form an executor keeps them.

`assemble` is the only place where a parameter's name meets its role.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Generic

from minicpm4.model.config import ModelConfig
from minicpm4.model.ops import Weight
from minicpm4.model.parameters import (
    EMBEDDING,
    HEAD,
    HEAD_NORMS,
    LAYER_ROLES,
    NORM,
    bias_parameter,
    head_norm_parameter,
    layer_parameter,
    parameter_shapes,
)
from minicpm4.model.rope import RopeTable, rope_table


@dataclass(frozen=True)
class Layer(Generic[Weight]):
    """One transformer block; matrices are [out features, in features]. biases: added to products, by the matrix's role. head_norms: of each
    head of queries ("q") and keys ("k"), where the model has them."""

    attention_norm: Weight
    q: Weight
    k: Weight
    v: Weight
    o: Weight
    mlp_norm: Weight
    gate: Weight
    up: Weight
    down: Weight
    biases: Mapping[str, Weight] = field(default_factory=dict)
    head_norms: Mapping[str, Weight] = field(default_factory=dict)

    @property
    def parameters(self) -> list[Weight]:
        return [*(getattr(self, role) for role in LAYER_ROLES), *self.biases.values(), *self.head_norms.values()]


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
    layers = tuple(assemble_layer(config, loaded, index) for index in range(config.num_layers))
    embedding = loaded[EMBEDDING]
    head = embedding if config.has_tied_head else loaded[HEAD]
    return Model(config, rope_table(config, context_length), embedding, layers, loaded[NORM], head)


def assemble_layer(config: ModelConfig, loaded: Mapping[str, Weight], index: int) -> Layer[Weight]:
    return Layer(
        **{role: loaded[layer_parameter(index, role)] for role in LAYER_ROLES},
        biases={role: loaded[bias_parameter(index, role)] for role in config.biases},
        head_norms={role: loaded[head_norm_parameter(index, role)] for role in HEAD_NORMS if config.has_head_norms},
    )
