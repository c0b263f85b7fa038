"""f32, f16 and bf16: an element is its own block."""

# n elements

from __future__ import annotations

import numpy as np

from minicpm4.quant.codec import Codec, to_half

F32_FIELDS = np.dtype([("value", "<f4")])
F16_FIELDS = np.dtype([("value", "<f2")])
BF16_FIELDS = np.dtype([("bits", "<u2")])


def as_blocks(values_n: np.ndarray, fields: np.dtype[np.void]) -> np.ndarray:
    blocks = np.empty(len(values_n), fields)
    blocks[blocks.dtype.names[0]] = values_n  # type: ignore[index]
    return blocks


def decode_value(blocks_n: np.ndarray) -> np.ndarray:
    return blocks_n["value"].astype(np.float32)[:, None]


def encode_f32(values_n1: np.ndarray) -> np.ndarray:
    return as_blocks(values_n1[:, 0], F32_FIELDS)


def encode_f16(values_n1: np.ndarray) -> np.ndarray:
    return as_blocks(to_half(values_n1[:, 0]), F16_FIELDS)


def decode_bf16(blocks_n: np.ndarray) -> np.ndarray:
    """The bits are the upper half of a float32."""
    return (blocks_n["bits"].astype(np.uint32) << 16).view(np.float32)[:, None]


def encode_bf16(values_n1: np.ndarray) -> np.ndarray:
    """To the nearest, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(values_n1[:, 0]).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return as_blocks(np.where(np.isnan(values_n1[:, 0]), (bits >> 16) | 0x40, rounded), BF16_FIELDS)


CODECS = {
    "f32": Codec(F32_FIELDS, decode_value, encode_f32),
    "f16": Codec(F16_FIELDS, decode_value, encode_f16),
    "bf16": Codec(BF16_FIELDS, decode_bf16, encode_bf16),
}
