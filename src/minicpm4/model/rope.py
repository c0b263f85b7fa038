"""Rotary position embedding: which frequencies a model turns its heads with, and the angles of given positions.

Every scaling of the Llama family is a divisor for each frequency (LongRoPE's lists, llama3's ramp, a linear factor),
so a table is two short vectors and a magnitude. Knows nothing of caches or of how an executor applies the angles.
"""

# T positions, F frequencies = head_dim / 2

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm4.model.config import ModelConfig


@dataclass(frozen=True)
class RopeTable:
    """angle[t, f] = (t * inverse_factors[f]) * inverse_frequencies[f], in float32 and in this order.

    magnitude multiplies cosines and sines (LongRoPE's attention factor; 1 for every released MiniCPM4).
    """

    inverse_factors_F: np.ndarray
    inverse_frequencies_F: np.ndarray
    magnitude: float


def rope_table(config: ModelConfig, context_length: int) -> RopeTable:
    """The table for sequences of up to context_length tokens.

    The long factors apply once the context is longer than the one trained first (LongRoPE, arXiv 2402.13753, section
    3.2; the rule of the checkpoints' own code, which builds its table for max_position_embeddings at the least).
    """
    rope, num_frequencies = config.rope, config.head_dim // 2
    counted = context_length if rope.follows_context else max(context_length, config.context_length)
    is_long = rope.original_context is not None and counted > rope.original_context
    factors = (rope.long_factors if is_long else rope.short_factors) or (1.0,) * num_frequencies
    exponents_F = np.arange(num_frequencies, dtype=np.float32) * np.float32(2) / np.float32(config.head_dim)
    return RopeTable(
        inverse_factors_F=(1 / np.asarray(factors, np.float32)).astype(np.float32),
        inverse_frequencies_F=(1 / np.float32(rope.theta) ** exponents_F).astype(np.float32),
        magnitude=rope.magnitude,
    )


def rope_angles(table: RopeTable, positions_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, float32 [T, F] each."""
    angles_TF = (positions_T.astype(np.float32)[:, None] * table.inverse_factors_F) * table.inverse_frequencies_F
    return np.cos(angles_TF) * np.float32(table.magnitude), np.sin(angles_TF) * np.float32(table.magnitude)
