"""Parameter names (those of the published safetensors files) and the shape that each must have."""

from __future__ import annotations

import re
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
HEAD_NORMS = ("q", "k")
# Groups of parameters that a checkpoint may hold beside the backbone: multi-token prediction (published as modules
# of their own, or as layers past the last), drafting heads, adapters.
GROUPS = {"mtp": r"(model\.)?mtp\.", "draft": r"(model\.)?draft\.", "adapters": r"(model\.)?adapters\."}


def layer_parameter(index: int, role: str) -> str:
    return f"model.layers.{index}.{LAYER_ROLES[role]}.weight"


def bias_parameter(index: int, role: str) -> str:
    """What is added to the product of that role's matrix."""
    return f"model.layers.{index}.{LAYER_ROLES[role]}.bias"


def head_norm_parameter(index: int, role: str) -> str:
    """The norm of each head of queries ("q") or keys ("k")."""
    return f"model.layers.{index}.self_attn.{role}_norm.weight"


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
        matrices = layer_shapes(config)
        shapes |= {layer_parameter(index, role): shape for role, shape in matrices.items()}
        shapes |= {bias_parameter(index, role): matrices[role][:1] for role in sorted(config.biases)}
        shapes |= {head_norm_parameter(index, role): (config.head_dim,) for role in HEAD_NORMS if config.has_head_norms}
    shapes[NORM] = (config.hidden_size,)
    if not config.has_tied_head:
        shapes[HEAD] = (config.vocab_size, config.hidden_size)
    return shapes


def check_parameters(config: ModelConfig, found: Mapping[str, tuple[int, ...]], *, ignorable: Iterable[str] = ()) -> list[str]:
    """CheckpointError unless `found` has all parameters of the config, with their shapes; the names of others, which have no part in it.

    ignorable: names that may be there without being said (a tied head's copy, rope tables that the config restates). Others that belong to
    a part of the model, such as a bias that the config does not ask for, would change what it computes: they are an error.
    """
    expected = parameter_shapes(config)
    missing, leftover = expected.keys() - found.keys(), found.keys() - expected.keys() - set(ignorable)
    inside = {name for name in leftover if belongs_to_model(name, config)}
    for problem, names in (("lacks", missing), ("has unknown", inside)):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise CheckpointError(f"the checkpoint {problem} tensors: {shown}", hint="check that the config belongs to these weights")
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise CheckpointError(
                f"{name} has shape {tuple(found[name])}, the config asks for {shape}", hint="check that the config belongs to these weights"
            )
    return sorted(leftover - inside)


def group_of(name: str, config: ModelConfig) -> str | None:
    """The group, one of `GROUPS`, of a tensor that is no part of the backbone; None for one that nobody knows."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    if layer is not None and int(layer[1]) >= config.num_layers:
        return "mtp"
    return next((group for group, pattern in GROUPS.items() if re.match(pattern, name)), None)


def belongs_to_model(name: str, config: ModelConfig) -> bool:
    """Whether a tensor's name is that of a part of a module that the forward pass has."""
    modules = {parameter.rpartition(".")[0] for parameter in (EMBEDDING, NORM, HEAD)}
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    is_in_layer = layer is not None and int(layer[1]) < config.num_layers
    return is_in_layer or any(name.startswith(f"{module}.") for module in modules)
