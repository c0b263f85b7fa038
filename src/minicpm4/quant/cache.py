"""How keys and values are stored between steps: the formats of the KV cache, their size, and what rounding they mean.

This is the algorithm to the bit; every executor that offers a format follows it. Where activations are coded and the cache is int8,
scores are sums of products of codes; attention's weights may then be rounded too, by half of 1 / 16383 of what the largest one could be.
"""

# D head dim

from __future__ import annotations

import numpy as np

from minicpm4.quant.activations import LARGEST_CODES, round_bf16
from minicpm4.quant.codec import reciprocal

KV_FORMATS = ("f32", "f16", "bf16", "int8")
LARGEST_CODE = 127
ELEMENT_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "int8": 1}


def head_bytes(kv_format: str, head_dim: int) -> int:
    """Bytes of one token's keys, or values, of one head."""
    return ELEMENT_BYTES[kv_format] * head_dim + (4 if kv_format == "int8" else 0)  # int8 has a float32 scale


def round_queries(q_D: np.ndarray, kv_format: str, activations: str) -> np.ndarray:
    """The float32 values that queries [..., D] are taken for: coded as activations are, but with one scale a head, if the cache is int8."""
    if kv_format != "int8" or activations == "f32":
        return q_D
    scales = np.abs(q_D).max(axis=-1, keepdims=True) / np.float32(LARGEST_CODES[activations])
    rounded: np.ndarray = np.rint(q_D * reciprocal(scales)) * scales
    return rounded


def round_cache(x_D: np.ndarray, kv_format: str) -> np.ndarray:
    """The float32 values that the cache gives back for x [..., D].

    int8: scale = largest magnitude of the head / 127, in float32; code = x * (1 / scale) to the nearest, ties to even; 0 where
    the scale is not a normal float32.
    """
    if kv_format == "f32":
        return x_D
    if kv_format == "f16":
        return x_D.astype(np.float16).astype(np.float32)
    if kv_format == "bf16":
        return round_bf16(x_D)
    scales = np.abs(x_D).max(axis=-1, keepdims=True) / np.float32(LARGEST_CODE)
    rounded: np.ndarray = np.rint(x_D * reciprocal(scales)) * scales
    return rounded
