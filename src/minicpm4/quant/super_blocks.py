"""Formats of 256 columns a block: the k formats, whose sub-blocks have small integer scales, and the ternary ones.

Byte layouts are GGUF's. Each codec's docstring is its specification; B is the number of blocks, S the sub-blocks of one.
"""

from __future__ import annotations

import numpy as np

from minicpm4.quant.blocks import divide, half_bytes, read_half, stored_scale

SUPER_BLOCK = 256


def read_k_scales(raw_B12: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight 6-bit scales and eight 6-bit offsets out of 12 bytes: [B, 8] each.

    Bytes 0..3 hold scales 0..3 and, in their top two bits, the top bits of scales 4..7; bytes 4..7 the same for offsets;
    bytes 8..11 hold the low four bits of scales 4..7 (low nibble) and of offsets 4..7 (high nibble).
    """
    low, high, rest = raw_B12[:, 0:4], raw_B12[:, 4:8], raw_B12[:, 8:12]
    scales = np.concatenate((low & 63, rest & 15 | low >> 6 << 4), axis=1)
    offsets = np.concatenate((high & 63, rest >> 4 | high >> 6 << 4), axis=1)
    return scales, offsets


def k_scale_bytes(scales_B8: np.ndarray, offsets_B8: np.ndarray) -> np.ndarray:
    low = scales_B8[:, :4] | scales_B8[:, 4:] >> 4 << 6
    high = offsets_B8[:, :4] | offsets_B8[:, 4:] >> 4 << 6
    rest = scales_B8[:, 4:] & 15 | (offsets_B8[:, 4:] & 15) << 4
    return np.concatenate((low, high, rest), axis=1)


def read_pair_nibbles(raw_B128: np.ndarray) -> np.ndarray:
    """32 bytes hold two sub-blocks, the first in their low nibbles: [B, 128] -> [B, 8, 32]."""
    groups = raw_B128.reshape(-1, 4, 1, 32)
    return np.concatenate((groups & 15, groups >> 4), axis=2).reshape(-1, 8, 32)


def pair_nibbles(codes_B8X: np.ndarray) -> np.ndarray:
    pairs = codes_B8X.reshape(-1, 4, 2, 32) & 15
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)


def decode_q4_k(raw: np.ndarray) -> np.ndarray:
    """144 bytes: half d, half m, 12 bytes of scales and offsets, 128 of nibbles. value = d * scale * code - m * offset."""
    return decode_k_affine(raw, read_pair_nibbles(raw[:, 16:144]))


def decode_q5_k(raw: np.ndarray) -> np.ndarray:
    """176 bytes: as q4_k with 32 bytes of fifth bits before the nibbles; bit s of byte i belongs to element i of sub-block s."""
    fifth = raw[:, 16:48, None] >> np.arange(8, dtype=np.uint8) & 1
    return decode_k_affine(raw, read_pair_nibbles(raw[:, 48:176]) | fifth.transpose(0, 2, 1) << 4)


def decode_k_affine(raw: np.ndarray, codes_B8X: np.ndarray) -> np.ndarray:
    scales, offsets = read_k_scales(raw[:, 4:16])
    scale_B8 = read_half(raw, 0) * scales
    offset_B8 = read_half(raw, 2) * offsets
    return (scale_B8[:, :, None] * codes_B8X - offset_B8[:, :, None]).reshape(-1, SUPER_BLOCK)


def encode_q4_k(values: np.ndarray) -> np.ndarray:
    header, codes = k_affine_codes(values, largest=15)
    return np.concatenate((header, pair_nibbles(codes)), axis=1)


def encode_q5_k(values: np.ndarray) -> np.ndarray:
    header, codes = k_affine_codes(values, largest=31)
    fifth = np.bitwise_or.reduce((codes >> 4 & 1) << np.arange(8, dtype=np.uint8)[:, None], axis=1)
    return np.concatenate((header, fifth, pair_nibbles(codes)), axis=1)


def k_affine_codes(values: np.ndarray, *, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """The 16 header bytes, and codes [B, 8, 32]: each sub-block spans its own range, rounded to six bits of the block's."""
    x = values.reshape(-1, 8, 32)
    lowest_B8 = np.minimum(x.min(axis=2), 0)
    step_B8 = (x.max(axis=2) - lowest_B8) / largest
    d_B1, m_B1 = (stored_scale(v.max(axis=1, keepdims=True) / 63) for v in (step_B8, -lowest_B8))
    scales, offsets = (
        np.clip(np.rint(divide(v, np.broadcast_to(d, v.shape))), 0, 63).astype(np.uint8) for v, d in ((step_B8, d_B1), (-lowest_B8, m_B1))
    )
    step = np.broadcast_to((d_B1 * scales)[:, :, None], x.shape)
    codes = np.clip(np.rint(divide(x + (m_B1 * offsets)[:, :, None], step)), 0, largest).astype(np.uint8)
    return np.concatenate((half_bytes(d_B1), half_bytes(m_B1), k_scale_bytes(scales, offsets)), axis=1), codes


def decode_q6_k(raw: np.ndarray) -> np.ndarray:
    """210 bytes: 128 of low nibbles, 64 of high pairs, 16 int8 scales, half d. value = d * scale * (code - 32).

    Each half of 128 columns uses 64 + 32 bytes: its columns 0..31 and 32..63 are the low nibbles of the 64 bytes, 64..95 and
    96..127 the high nibbles; bits 2 p of the 32 bytes are the top bits of columns 32 p .. 32 p + 31. A scale has 16 columns.
    """
    low = raw[:, :128].reshape(-1, 2, 1, 64)
    nibbles = np.concatenate((low & 15, low >> 4), axis=2).reshape(-1, 2, 4, 32)
    pairs = raw[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    codes = (nibbles | pairs << 4).reshape(-1, 16, 16)
    scale_BS = read_half(raw, 208) * raw[:, 192:208].view(np.int8)
    return (scale_BS[:, :, None] * (codes.astype(np.float32) - 32)).reshape(-1, SUPER_BLOCK)


def encode_q6_k(values: np.ndarray) -> np.ndarray:
    x = values.reshape(-1, 16, 16)
    step_BS = np.abs(x).max(axis=2) / 31
    d_B1 = stored_scale(step_BS.max(axis=1, keepdims=True) / 127)
    scales = np.clip(np.rint(divide(step_BS, np.broadcast_to(d_B1, step_BS.shape))), 0, 127)
    codes = np.clip(np.rint(divide(x, np.broadcast_to((d_B1 * scales)[:, :, None], x.shape))) + 32, 0, 63).astype(np.uint8)
    quarters = codes.reshape(-1, 2, 4, 32)
    low = (quarters[:, :, :2] & 15 | (quarters[:, :, 2:] & 15) << 4).reshape(-1, 128)
    high = np.bitwise_or.reduce(quarters >> 4 << np.array([0, 2, 4, 6], np.uint8)[:, None], axis=2).reshape(-1, 64)
    return np.concatenate((low, high, scales.astype(np.int8).view(np.uint8), half_bytes(d_B1)), axis=1)


def decode_tq2_0(raw: np.ndarray) -> np.ndarray:
    """66 bytes: 64 of pairs, half d. value = d * (code - 1); code 3 is not used.

    Each half of 128 columns uses 32 bytes: bits 2 n of byte i are column 32 n + i.
    """
    pairs = raw[:, :64].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return read_half(raw, 64) * (pairs.reshape(-1, SUPER_BLOCK).astype(np.float32) - 1)


def encode_tq2_0(values: np.ndarray) -> np.ndarray:
    scales, trits = ternary_codes(values)
    pairs = trits.reshape(-1, 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    return np.concatenate((np.bitwise_or.reduce(pairs, axis=2).reshape(-1, 64), half_bytes(scales)), axis=1)


POWERS_OF_THREE = np.array([1, 3, 9, 27, 81], np.uint8)


def decode_tq1_0(raw: np.ndarray) -> np.ndarray:
    """54 bytes: 48 of five trits, 4 of four trits, half d. value = d * (trit - 1).

    A byte is ceil(256 n / 243) of the base-3 number n whose first trit is the most significant (four trits: n times 3).
    Bytes 0..31 hold columns i, i + 32, .. i + 128; bytes 32..47 columns 160 + i, 176 + i, ..; bytes 48..51 columns 240 + i, ...
    """
    parts = [read_trits(raw[:, first:last], count) for first, last, count in ((0, 32, 5), (32, 48, 5), (48, 52, 4))]
    return read_half(raw, 52) * (np.concatenate(parts, axis=1).astype(np.float32) - 1)


def read_trits(raw_BX: np.ndarray, count: int) -> np.ndarray:
    """Multiplying by 3^n modulo 256 leaves trit n as the integer part of three times the fraction."""
    shifted = raw_BX[:, None, :] * POWERS_OF_THREE[:count, None]
    return (shifted.astype(np.uint16) * 3 >> 8).reshape(len(raw_BX), -1)


def encode_tq1_0(values: np.ndarray) -> np.ndarray:
    scales, trits = ternary_codes(values)
    parts = [
        join_trits(trits[:, first:last].reshape(len(trits), count, -1))
        for first, last, count in ((0, 160, 5), (160, 240, 5), (240, 256, 4))
    ]
    return np.concatenate((*parts, half_bytes(scales)), axis=1)


def join_trits(trits_BNX: np.ndarray) -> np.ndarray:
    weights = POWERS_OF_THREE[::-1][: trits_BNX.shape[1], None].astype(np.uint32)
    return (((trits_BNX * weights).sum(axis=1) * 256 + 242) // 243).astype(np.uint8)


def ternary_codes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """d = max|x| of the block; lossless where every value is -d, 0 or d."""
    scales_B1 = stored_scale(np.abs(values).max(axis=1, keepdims=True))
    return scales_B1, (np.clip(np.rint(divide(values, np.broadcast_to(scales_B1, values.shape))), -1, 1) + 1).astype(np.uint8)
