"""The MiniCPM4 forward pass, said once. With every scale at 1 it is Llama's; with biases or norms of heads, Qwen's.

A loop over `block`, between `embed` and `head`: who trains, drafts or runs a part of the model calls these. Knows the order of operations;
knows neither devices, nor number formats, nor how the cache is kept.
Source: the published checkpoints' own code and the report (arXiv 2506.07900); docs/structure.md follows a token through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minicpm4.model.config import ModelConfig
from minicpm4.model.model import Layer, Model
from minicpm4.model.ops import Array, Ops, StepInputs, Weight

RunBlock = Callable[..., Any]


def forward(
    ops: Ops[Array, Weight], model: Model[Weight], step: StepInputs[Array], *, run_block: RunBlock | None = None
) -> tuple[Array, Array]:
    """Logits [R, V] of the step's logit rows, and their hidden states [R, K], which the head multiplies; keys and values of all tokens are
    written on the way.

    run_block: called as `block` is, in its place: `block` wrapped, to compute it again in a backward pass, compile or shard it.
    """
    run_block = run_block or block
    x = embed(ops, model, step.tokens_T)
    rotation = ops.rotation(step.positions_T, model.rope)
    for index, layer in enumerate(model.layers):
        x = run_block(ops, layer, x, config=model.config, rotation=rotation, index=index, step=step)
    hidden = ops.rms_norm(ops.take(x, step.logit_rows_R), model.norm, model.config.norm_eps)
    return head(ops, model, hidden), hidden


def embed(ops: Ops[Array, Weight], model: Model[Weight], tokens_T: Array) -> Array:
    """[T, K], what the first block takes."""
    return ops.scale(ops.embed(model.embedding, tokens_T), model.config.embedding_scale)


def block(
    ops: Ops[Array, Weight], layer: Layer[Weight], x: Array, *, config: ModelConfig, rotation: Any, index: int, step: StepInputs[Array]
) -> Array:
    """One transformer block, [T, K] -> [T, K]. rotation: of the step's positions. index: of the layer's cache."""
    h = ops.rms_norm(x, layer.attention_norm, config.norm_eps)
    q, k, v = (product(ops, h, layer, role) for role in ("q", "k", "v"))
    if config.has_head_norms:
        q, k = (ops.rms_norm_heads(heads, layer.head_norms[role], config.norm_eps) for heads, role in ((q, "q"), (k, "k")))
    a = ops.attend(ops.rope(q, rotation), ops.rope(k, rotation), v, layer=index, step=step)
    x = ops.add_scaled(x, product(ops, a, layer, "o"), config.residual_scale)
    h = ops.rms_norm(x, layer.mlp_norm, config.norm_eps)
    h = ops.swiglu(product(ops, h, layer, "gate"), product(ops, h, layer, "up"))
    return ops.add_scaled(x, product(ops, h, layer, "down"), config.residual_scale)


def head(ops: Ops[Array, Weight], model: Model[Weight], hidden_RK: Array) -> Array:
    """Logits [R, V] of normed hidden states."""
    return ops.linear(ops.scale(hidden_RK, 1 / model.config.logit_divisor), model.head)


def product(ops: Ops[Array, Weight], x: Array, layer: Layer[Weight], role: str) -> Array:
    """x times the layer's matrix of that role, plus its bias where it has one."""
    out = ops.linear(x, getattr(layer, role))
    return ops.add_bias(out, layer.biases[role]) if role in layer.biases else out
