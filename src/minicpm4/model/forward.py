"""The MiniCPM4 forward pass, said once. With every scale at 1 it is Llama's; with biases or norms of heads, Qwen's.

Knows the order of operations; knows neither devices, nor number formats, nor how the cache is kept.
Source: the published checkpoints' own code and the report (arXiv 2506.07900); docs/structure.md follows a token through it.
"""

from __future__ import annotations

from minicpm4.model.model import Layer, Model
from minicpm4.model.ops import Array, Ops, StepInputs, Weight


def forward(ops: Ops[Array, Weight], model: Model[Weight], step: StepInputs[Array]) -> Array:
    """Logits [R, V] of the rows that the step wants; keys and values of all its tokens are written on the way."""
    c = model.config
    x = ops.scale(ops.embed(model.embedding, step.tokens_T), c.embedding_scale)
    rotation = ops.rotation(step.positions_T, model.rope)
    for index, layer in enumerate(model.layers):
        h = ops.rms_norm(x, layer.attention_norm, c.norm_eps)
        q, k, v = (product(ops, h, layer, role) for role in ("q", "k", "v"))
        if c.has_head_norms:
            q, k = (ops.rms_norm_heads(heads, layer.head_norms[role], c.norm_eps) for heads, role in ((q, "q"), (k, "k")))
        a = ops.attend(ops.rope(q, rotation), ops.rope(k, rotation), v, layer=index, step=step)
        x = ops.add_scaled(x, product(ops, a, layer, "o"), c.residual_scale)
        h = ops.rms_norm(x, layer.mlp_norm, c.norm_eps)
        h = ops.swiglu(product(ops, h, layer, "gate"), product(ops, h, layer, "up"))
        x = ops.add_scaled(x, product(ops, h, layer, "down"), c.residual_scale)
    x = ops.rms_norm(ops.take(x, step.wanted_R), model.norm, c.norm_eps)
    return ops.linear(ops.scale(x, 1 / c.logit_divisor), model.head)


def product(ops: Ops[Array, Weight], x: Array, layer: Layer[Weight], role: str) -> Array:
    """x times the layer's matrix of that role, plus its bias where it has one."""
    out = ops.linear(x, getattr(layer, role))
    return ops.add_bias(out, layer.biases[role]) if role in layer.biases else out
