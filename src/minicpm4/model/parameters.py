"""Parameter names (those of the published safetensors files) and the shape that each must have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from minicpm4.errors import CheckpointError
from minicpm4.model.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"
LAYER_ROLES = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def layer_parameter(index: int, role: str) -> str:
    return f"model.layers.{index}.{LAYER_ROLES[role]}.weight"


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each role's parameter in every layer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "attention_norm": (hidden,), "q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries),
        "mlp_norm": (hidden,), "gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner),
    }  # fmt: skip


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter that a checkpoint of this config holds, with its shape."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for index in range(config.num_layers):
        shapes |= {layer_parameter(index, role): shape for role, shape in layer_shapes(config).items()}
    shapes[NORM] = (config.hidden_size,)
    if not config.has_tied_head:
        shapes[HEAD] = (config.vocab_size, config.hidden_size)
    return shapes


def check_parameters(config: ModelConfig, found: Mapping[str, tuple[int, ...]], *, ignorable: Iterable[str] = ()) -> None:
    """CheckpointError unless `found` has exactly the parameters of the config, with their shapes.

    ignorable: names that may be there without being parameters (a tied head's copy, rope tables that the config restates).
    """
    expected = parameter_shapes(config)
    missing, leftover = expected.keys() - found.keys(), found.keys() - expected.keys() - set(ignorable)
    for problem, names in (("lacks", missing), ("has unknown", leftover)):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise CheckpointError(f"the checkpoint {problem} tensors: {shown}", hint="check that the config belongs to these weights")
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise CheckpointError(
                f"{name} has shape {tuple(found[name])}, the config asks for {shape}", hint="check that the config belongs to these weights"
            )
