"""Blocks of elements that are -1, 0 or 1 times one scale: GGUF's tq1_0, tq2_0 and q2_0, and our own ternary_g32, g64, g128, g256.

GGUF's blocks have 256 elements (q2_0: 64, or 128 in older files) and take the largest magnitude as their scale. Ours have as many as the
name says and follow BitCPM: the scale is the mean magnitude. A block whose values share one magnitude is stored exactly by
`encode_exact`, and by GGUF's; by BitCPM's rule it is not, because zeros lower the mean: encode trained weights once, and keep codes and
scales.
"""

# n blocks, g elements of a block of ours

from __future__ import annotations

import numpy as np

from minicpm4.quant.codec import Codec, codes_of, column, pack_fields, reciprocal, to_half, unpack_fields

# Two bits an element. Of every 128 elements, element 32 k + i is bits 2k, 2k + 1 of byte i of 32.
TQ2_0_FIELDS = np.dtype([("codes", "u1", 64), ("scale", "<f2")])

# Five elements a byte, digits of a number in base 3, see `pack_digits`. Byte i of 32 holds elements i, i + 32, .. i + 128;
# byte i of the next 16 holds elements 160 + i, 160 + i + 16, .. ; byte i of the last 4 holds elements 240 + i, 240 + i + 4, ..
# four of them.
TQ1_0_FIELDS = np.dtype([("codes", "u1", 52), ("scale", "<f2")])
TQ1_0_RUNS = ((0, 32, 5), (160, 16, 5), (240, 4, 4))  # first element, bytes, elements a byte
POWERS = np.array([1, 3, 9, 27, 81], np.uint8)

# The scale first, then two bits an element in order: element j is bits 2 (j % 4) and up of byte j / 4. Code 3 is legal and means 2.
Q2_0_FIELDS = {g: np.dtype([("scale", "<f2"), ("codes", "u1", g // 4)]) for g in (64, 128)}

# Ours: two bits an element in order, then the block's scale. Element e is bits 2 (e % 4), 2 (e % 4) + 1 of byte e / 4; code 0, 1
# or 2 means -1, 0 or 1. Code 3 is reserved: it is never written, readers of files refuse it, and decoders compute 2 for it.
TERNARY_FIELDS = {g: np.dtype([("codes", "u1", g // 4), ("scale", "<f2")]) for g in (32, 64, 128, 256)}
SMALLEST_SCALE = 1e-5  # of BitCPM's rule, for groups of nearly nothing


def pack_digits(digits: np.ndarray) -> np.ndarray:
    """Digits 0..2 [..., up to 5, m] -> bytes [..., m].

    The number (first digit most significant, missing digits 0) is stored as the fraction number / 243 of 256, rounded up,
    so that a digit is the whole part of 3 times the fraction that is left.
    """
    powers = POWERS[::-1][: digits.shape[-2], None].astype(np.int32)
    return (((digits * powers).sum(axis=-2) * 256 + 242) // 243).astype(np.uint8)


def unpack_digits(packed: np.ndarray, count: int) -> np.ndarray:
    """Bytes [..., m] -> digits 0..2 [..., count, m]; bytes that no number has give digits all the same."""
    fractions = packed[..., None, :] * POWERS[:count, None]  # the whole parts fall off the byte
    return (fractions.astype(np.uint16) * 3 >> 8).astype(np.uint8)


def decode_tq1_0(blocks_n: np.ndarray) -> np.ndarray:
    """scale * (digit - 1)."""
    runs, start = [], 0
    for _, size, count in TQ1_0_RUNS:
        runs.append(unpack_digits(blocks_n["codes"][:, start : start + size], count).reshape(-1, size * count))
        start += size
    return column(blocks_n["scale"]) * (np.concatenate(runs, axis=1).astype(np.int8) - np.int8(1))


def decode_tq2_0(blocks_n: np.ndarray) -> np.ndarray:
    """scale * (code - 1); code 3 is not written by encoders and reads as 2."""
    codes = unpack_fields(blocks_n["codes"].reshape(-1, 2, 32), 2).reshape(-1, 256)
    return column(blocks_n["scale"]) * (codes.astype(np.int8) - np.int8(1))


def scale_and_digits(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scale is the largest magnitude; float16 [n] and digits 0..2, int32 as the values."""
    scale = to_half(np.abs(values).max(axis=1))
    return scale, codes_of(values * reciprocal(column(scale)), -1, 1) + 1


def encode_tq1_0(values: np.ndarray) -> np.ndarray:
    blocks = np.empty(len(values), TQ1_0_FIELDS)
    blocks["scale"], digits = scale_and_digits(values)
    runs = [pack_digits(digits[:, first : first + size * count].reshape(-1, count, size)) for first, size, count in TQ1_0_RUNS]
    blocks["codes"] = np.concatenate(runs, axis=1)
    return blocks


def encode_tq2_0(values: np.ndarray) -> np.ndarray:
    blocks = np.empty(len(values), TQ2_0_FIELDS)
    blocks["scale"], digits = scale_and_digits(values)
    blocks["codes"] = pack_fields(digits.reshape(-1, 2, 4, 32), 2).reshape(-1, 64)
    return blocks


def encode_q2_0(values: np.ndarray) -> np.ndarray:
    blocks = np.empty(len(values), Q2_0_FIELDS[values.shape[1]])
    blocks["scale"], digits = scale_and_digits(values)
    blocks["codes"] = pack_fields(digits.reshape(len(values), -1, 4, 1), 2)[..., 0]
    return blocks


def decode_ternary(blocks_n: np.ndarray) -> np.ndarray:
    """scale * (code - 1), of our blocks and of q2_0's."""
    codes = unpack_fields(blocks_n["codes"][..., None], 2).reshape(len(blocks_n), -1)
    return column(blocks_n["scale"]) * (codes.astype(np.int8) - np.int8(1))


def ternary_blocks(values_ng: np.ndarray, scales_n: np.ndarray) -> np.ndarray:
    """Blocks with these scales, float16, and the nearest codes."""
    blocks = np.empty(len(values_ng), TERNARY_FIELDS[values_ng.shape[1]])
    blocks["scale"] = scales_n
    digits = codes_of(values_ng * reciprocal(column(scales_n)), -1, 1) + 1
    blocks["codes"] = pack_fields(digits.reshape(len(values_ng), -1, 4, 1), 2)[..., 0]
    return blocks


def encode_mean(values_ng: np.ndarray) -> np.ndarray:
    """BitCPM's rule: scale = the larger of the mean magnitude and SMALLEST_SCALE, as float16; code = value / scale to the nearest."""
    to_half(np.abs(values_ng).max(axis=1))  # refuses what has no float16, though a mean may have one
    return ternary_blocks(values_ng, to_half(np.maximum(np.abs(values_ng).mean(axis=1), SMALLEST_SCALE)))


def encode_exact(values_ng: np.ndarray) -> np.ndarray:
    """Values that are a float16 times -1, 0 or 1 in each block; ValueError where they are not."""
    blocks = ternary_blocks(values_ng, to_half(np.abs(values_ng).max(axis=1)))
    if not (decode_ternary(blocks) == values_ng).all():
        raise ValueError("values are not a float16 times -1, 0 or 1 in each group")
    return blocks


CODECS = {
    "tq1_0": Codec(TQ1_0_FIELDS, decode_tq1_0, encode_tq1_0),
    "tq2_0": Codec(TQ2_0_FIELDS, decode_tq2_0, encode_tq2_0),
    "q2_0": Codec(Q2_0_FIELDS[64], decode_ternary, encode_q2_0),
    "q2_0_g128": Codec(Q2_0_FIELDS[128], decode_ternary, encode_q2_0),
    **{f"ternary_g{g}": Codec(fields, decode_ternary, encode_mean) for g, fields in TERNARY_FIELDS.items()},
}
