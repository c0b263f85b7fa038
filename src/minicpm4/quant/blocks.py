"""Formats of 32 columns a block: codes of 4, 5 or 8 bits with one scale, and an offset or a fixed zero.

Byte layouts are GGUF's. Each codec's docstring is its specification; B is the number of blocks.
"""

from __future__ import annotations

import numpy as np

BLOCK = 32


def read_half(raw_BX: np.ndarray, at: int) -> np.ndarray:
    """float32 [B, 1] of the half at byte `at` of each block."""
    return np.ascontiguousarray(raw_BX[:, at : at + 2]).view(np.float16).astype(np.float32)


def half_bytes(values_B: np.ndarray) -> np.ndarray:
    """The halves' bytes, [B, 2]."""
    return values_B.astype(np.float16).reshape(-1, 1).view(np.uint8)


def split_nibbles(raw_B16: np.ndarray) -> np.ndarray:
    """Element i is the low nibble of byte i, element i + 16 its high nibble: [B, 16] -> [B, 32]."""
    return np.concatenate((raw_B16 & 15, raw_B16 >> 4), axis=1)


def join_nibbles(codes_B32: np.ndarray) -> np.ndarray:
    return codes_B32[:, :16] & 15 | (codes_B32[:, 16:] & 15) << 4


def read_fifth_bits(raw_B4: np.ndarray) -> np.ndarray:
    """Bit i of the little-endian word is bit 4 of element i: [B, 4] -> [B, 32] of 0 or 16."""
    return np.unpackbits(np.ascontiguousarray(raw_B4), axis=1, bitorder="little") << 4


def fifth_bits(codes_B32: np.ndarray) -> np.ndarray:
    return np.packbits(codes_B32 >> 4 & 1, axis=1, bitorder="little")


def decode_q8_0(raw: np.ndarray) -> np.ndarray:
    """34 bytes: half d, 32 int8 codes. value = d * code."""
    return read_half(raw, 0) * raw[:, 2:].view(np.int8)


def encode_q8_0(values: np.ndarray) -> np.ndarray:
    scales, codes = symmetric_codes(values, largest=127)
    return np.concatenate((half_bytes(scales), codes.astype(np.int8).view(np.uint8)), axis=1)


def decode_q4_0(raw: np.ndarray) -> np.ndarray:
    """18 bytes: half d, 16 bytes of nibbles. value = d * (code - 8)."""
    return read_half(raw, 0) * (split_nibbles(raw[:, 2:]).astype(np.float32) - 8)


def encode_q4_0(values: np.ndarray) -> np.ndarray:
    scales, codes = one_sided_codes(values, zero=8)
    return np.concatenate((half_bytes(scales), join_nibbles(codes)), axis=1)


def decode_q4_1(raw: np.ndarray) -> np.ndarray:
    """20 bytes: half d, half m, 16 bytes of nibbles. value = d * code + m."""
    return read_half(raw, 0) * split_nibbles(raw[:, 4:]) + read_half(raw, 2)


def encode_q4_1(values: np.ndarray) -> np.ndarray:
    scales, offsets, codes = affine_codes(values, largest=15)
    return np.concatenate((half_bytes(scales), half_bytes(offsets), join_nibbles(codes)), axis=1)


def decode_q5_0(raw: np.ndarray) -> np.ndarray:
    """22 bytes: half d, 4 bytes of fifth bits, 16 bytes of nibbles. value = d * (code - 16)."""
    codes = split_nibbles(raw[:, 6:]) | read_fifth_bits(raw[:, 2:6])
    return read_half(raw, 0) * (codes.astype(np.float32) - 16)


def encode_q5_0(values: np.ndarray) -> np.ndarray:
    scales, codes = one_sided_codes(values, zero=16)
    return np.concatenate((half_bytes(scales), fifth_bits(codes), join_nibbles(codes)), axis=1)


def decode_q5_1(raw: np.ndarray) -> np.ndarray:
    """24 bytes: half d, half m, 4 bytes of fifth bits, 16 bytes of nibbles. value = d * code + m."""
    codes = split_nibbles(raw[:, 8:]) | read_fifth_bits(raw[:, 4:8])
    return read_half(raw, 0) * codes + read_half(raw, 2)


def encode_q5_1(values: np.ndarray) -> np.ndarray:
    scales, offsets, codes = affine_codes(values, largest=31)
    return np.concatenate((half_bytes(scales), half_bytes(offsets), fifth_bits(codes), join_nibbles(codes)), axis=1)


def stored_scale(scales_B: np.ndarray) -> np.ndarray:
    """The scale as the file will hold it, so that codes are chosen for the value that decoding uses."""
    return scales_B.astype(np.float16).astype(np.float32)


def divide(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """values / scales, 0 where the scale is 0."""
    return np.divide(values, scales, out=np.zeros_like(values), where=scales != 0)


def symmetric_codes(values_BX: np.ndarray, *, largest: int) -> tuple[np.ndarray, np.ndarray]:
    scales_B1 = stored_scale(np.abs(values_BX).max(axis=1, keepdims=True) / largest)
    return scales_B1, np.clip(np.rint(divide(values_BX, scales_B1)), -largest, largest)


def one_sided_codes(values_BX: np.ndarray, *, zero: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes 0 .. 2 zero - 1 around zero: the value of largest magnitude gets code 0, which has one step more than the other end."""
    extreme_B1 = np.take_along_axis(values_BX, np.abs(values_BX).argmax(axis=1)[:, None], axis=1)
    scales_B1 = stored_scale(-extreme_B1 / zero)
    return scales_B1, np.clip(np.rint(divide(values_BX, scales_B1)) + zero, 0, 2 * zero - 1).astype(np.uint8)


def affine_codes(values_BX: np.ndarray, *, largest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    offsets_B1 = stored_scale(values_BX.min(axis=1, keepdims=True))
    scales_B1 = stored_scale((values_BX.max(axis=1, keepdims=True) - offsets_B1) / largest)
    return scales_B1, offsets_B1, np.clip(np.rint(divide(values_BX - offsets_B1, scales_B1)), 0, largest).astype(np.uint8)
