"""What a codec is: a block's fields, and the functions between blocks and values. Plus the few bit moves that codecs share.

A codec works on whole arrays of blocks; how blocks lie in a tensor is `formats`.
"""

# n blocks, E elements of a block

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

HALF_MAX = 65504.0  # the largest float16


@dataclass(frozen=True)
class Codec:
    """fields: the block's bytes as a packed little-endian struct, in order.

    decode: blocks [n] of these fields -> float32 [n, E], rounded as the products and sums in its docstring are written.
    encode: float32 [n, E] -> blocks [n]; ValueError where a value is too large for the format's scales, or not finite.
    """

    fields: np.dtype[np.void]
    decode: Callable[[np.ndarray], np.ndarray]
    encode: Callable[[np.ndarray], np.ndarray]


def to_half(values: np.ndarray) -> np.ndarray:
    """Rounded to float16. ValueError where a value is not finite, in or after."""
    if not (np.abs(values) < HALF_MAX + 16).all():  # from here on rounding would go to infinity; false for NaN too
        raise ValueError("values are not finite, or too large for a float16 scale")
    return values.astype(np.float16)


def reciprocal(values: np.ndarray) -> np.ndarray:
    """1 / value, and 0 where that has no float32: a scale too small to divide by gives codes of 0."""
    inverse = np.zeros_like(values)
    np.divide(1, values, out=inverse, where=np.abs(values) >= np.finfo(np.float32).tiny)
    return inverse


def codes_of(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """Rounded to the nearest whole number in [low, high], as int32."""
    return np.clip(np.rint(values), low, high).astype(np.int32)


def column(scales_n: np.ndarray) -> np.ndarray:
    """One number a block as a float32 column, to multiply the block's elements with."""
    return scales_n.astype(np.float32)[:, None]


def signed_peak(values: np.ndarray) -> np.ndarray:
    """The value of largest magnitude along the last axis, with its sign; the axis stays, of size 1."""
    return np.take_along_axis(values, np.abs(values).argmax(axis=-1, keepdims=True), axis=-1)


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Codes 0..15 [..., 2, m] -> bytes [..., m]: the first m in the low halves, the others in the high ones."""
    return (codes[..., 0, :] | codes[..., 1, :] << 4).astype(np.uint8)


def unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    """Inverse of `pack_nibbles`, as uint8."""
    return np.stack((packed & 15, packed >> 4), axis=-2)


def unpack_fields(packed: np.ndarray, bits: int) -> np.ndarray:
    """Bytes [..., m] -> codes [..., 8 / bits, m]: code n of a byte is its bits n * bits and up."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (packed[..., None, :] >> shifts) & np.uint8((1 << bits) - 1)


def pack_fields(codes: np.ndarray, bits: int) -> np.ndarray:
    """Inverse of `unpack_fields`."""
    shifts = np.arange(0, 8, bits)[:, None]
    return (codes.astype(np.int32) << shifts).sum(axis=-2).astype(np.uint8)
