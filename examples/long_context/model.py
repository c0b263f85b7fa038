"""A model that trains: parameters by their published names, and the project's forward pass over them, densely or with InfLLM v2.

Dense and sparse attention share every parameter; which of them runs is an argument of a call.
"""

# B sequences, T tokens of each, R rows whose logits are wanted

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from examples.long_context.task import VOCAB_SIZE
from minicpm4.executors.torch.ops import TorchOps
from minicpm4.executors.torch.packed import PackedAttention
from minicpm4.executors.torch.weights import Plain
from minicpm4.model import ModelConfig, assemble, forward
from minicpm4.model.config import RopeConfig, SparseConfig
from minicpm4.model.parameters import EMBEDDING, HEAD, parameter_shapes

Parameters = dict[str, Tensor]
BASE_WIDTH = 64  # MiniCPM4's is 256: the width at which its scales and learning rates were found
DEPTH_SCALE, EMBEDDING_SCALE, SPREAD = 1.4, 12.0, 0.1  # MiniCPM's
NUM_KV_HEADS, HEAD_DIM = 2, 64
# Blocks are chosen by the mean of 32 keys, where one key is faint. What all keys have in common turns with the distance and made
# blocks of nothing but filler score apart as far as that: with 1e9, two thirds of the frequencies hardly turn in 1024 tokens.
ROPE_THETA = 1e9


def small_config(*, width: int = 128, num_layers: int = 2, context_length: int = 1024) -> ModelConfig:
    """MiniCPM4's shape, small: two kv heads, its scales of embeddings, branches and logits."""
    return ModelConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=width,
        intermediate_size=2 * width,
        num_layers=num_layers,
        num_heads=width // 32,
        num_kv_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        context_length=context_length,
        rope=RopeConfig(theta=ROPE_THETA),
        embedding_scale=EMBEDDING_SCALE,
        residual_scale=DEPTH_SCALE / num_layers**0.5,
        logit_divisor=width / BASE_WIDTH,
    )


def initial_parameters(config: ModelConfig, *, seed: int) -> Parameters:
    """By muP: hidden matrices are narrower the wider the model; embedding and head are not; norms are ones."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape)
        spread = SPREAD if name in (EMBEDDING, HEAD) else SPREAD / config.logit_divisor**0.5
        return spread * torch.randn(shape, generator=generator)

    return {name: draw(name, shape).requires_grad_() for name, shape in parameter_shapes(config).items()}


def logits_of(
    config: ModelConfig, parameters: Parameters, tokens_BT: np.ndarray, *, rows_R: np.ndarray, sparse: SparseConfig | None
) -> Tensor:
    """[R, V]. rows_R: ascending, of all sequences one after the other. sparse: the rule of attention, None for dense; both read the same
    parameters."""
    attention = PackedAttention(sparse)
    model = assemble(config, lambda name: Plain(parameters[name]), context_length=config.context_length)
    step = attention.inputs(
        torch.from_numpy(tokens_BT.reshape(-1)), [tokens_BT.shape[1]] * len(tokens_BT), logit_rows_R=torch.from_numpy(rows_R)
    )
    return forward(TorchOps(config, attention), model, step)[0]
