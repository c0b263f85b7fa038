"""q4_k, q5_k, q6_k: blocks of 256 elements in sub-blocks, whose scales are themselves small whole numbers times a float16.

Layouts are GGUF's. Our encoders take the range of each sub-block and search no further; files made by others decode exactly.
"""

# n blocks, S sub-blocks of a block

from __future__ import annotations

import numpy as np

from minicpm4.quant.codec import (
    Codec,
    codes_of,
    column,
    pack_fields,
    pack_nibbles,
    reciprocal,
    signed_peak,
    to_half,
    unpack_fields,
    unpack_nibbles,
)

# Eight sub-blocks of 32. `scales` holds a 6-bit step and a 6-bit minimum for each, see `unpack_scales`.
# 4-bit codes: of every 64 elements, the first 32 are the low halves of 32 bytes, the others the high halves.
# fifths: bit s of byte i is the fifth bit of element 32 s + i.
Q4_K_FIELDS = np.dtype([("scale", "<f2"), ("minimum_scale", "<f2"), ("scales", "u1", 12), ("codes", "u1", 128)])
Q5_K_FIELDS = np.dtype([("scale", "<f2"), ("minimum_scale", "<f2"), ("scales", "u1", 12), ("fifths", "u1", 32), ("codes", "u1", 128)])
# Sixteen sub-blocks of 16. Of every 128 elements, the lower four bits are 64 bytes as 4-bit codes are above (elements 0..63
# low, 64..127 high), the upper two bits of element 32 k + i are bits 2k, 2k + 1 of byte i of 32.
Q6_K_FIELDS = np.dtype([("lower", "u1", 128), ("upper", "u1", 64), ("steps", "i1", 16), ("scale", "<f2")])


def unpack_scales(packed_n12: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps and minima, uint8 [n, 8] each, 0..63.

    Sub-block s < 4: step in the lower six bits of byte s, minimum in those of byte s + 4. Sub-block s >= 4: lower four
    bits of step and minimum are the halves of byte s + 4, upper two bits are the top bits of bytes s - 4 and s.
    """
    first, second, third = packed_n12[:, :4], packed_n12[:, 4:8], packed_n12[:, 8:]
    steps = np.concatenate((first & 63, (third & 15) | (first >> 6) << 4), axis=1)
    minima = np.concatenate((second & 63, (third >> 4) | (second >> 6) << 4), axis=1)
    return steps, minima


def pack_scales(steps_n8: np.ndarray, minima_n8: np.ndarray) -> np.ndarray:
    first = steps_n8[:, :4] | (steps_n8[:, 4:] >> 4) << 6
    second = minima_n8[:, :4] | (minima_n8[:, 4:] >> 4) << 6
    third = (steps_n8[:, 4:] & 15) | (minima_n8[:, 4:] & 15) << 4
    return np.concatenate((first, second, third), axis=1).astype(np.uint8)


def unpack_k_codes(blocks_n: np.ndarray) -> np.ndarray:
    """Codes 0..15, or 0..31 where blocks have fifth bits, as uint8 [n, 8, 32]."""
    codes = unpack_nibbles(blocks_n["codes"].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    if "fifths" not in (blocks_n.dtype.names or ()):
        return codes
    return codes | unpack_fields(blocks_n["fifths"], 1) << 4


def decode_k(blocks_n: np.ndarray) -> np.ndarray:
    """(scale * step) * code - minimum_scale * minimum."""
    steps, minima = unpack_scales(blocks_n["scales"])
    scales, offsets = column(blocks_n["scale"]) * steps, column(blocks_n["minimum_scale"]) * minima
    return (scales[..., None] * unpack_k_codes(blocks_n) - offsets[..., None]).reshape(-1, 256)


def encode_k(values: np.ndarray, fields: np.dtype[np.void], last_code: int) -> np.ndarray:
    """Each sub-block's range from its minimum (0 at most) to its maximum; steps are measured from the minimum as stored."""
    blocks = np.empty(len(values), fields)
    values_nSE = values.reshape(-1, 8, 32)
    depths = np.maximum(0, -values_nSE.min(axis=2))
    blocks["minimum_scale"] = to_half(depths.max(axis=1) / 63)
    minima = codes_of(depths * reciprocal(column(blocks["minimum_scale"])), 0, 63)
    offsets = column(blocks["minimum_scale"]) * minima
    ranges = np.maximum(0, values_nSE.max(axis=2) + offsets) / last_code
    blocks["scale"] = to_half(ranges.max(axis=1) / 63)
    steps = codes_of(ranges * reciprocal(column(blocks["scale"])), 0, 63)
    scales = column(blocks["scale"]) * steps
    codes = codes_of((values_nSE + offsets[..., None]) * reciprocal(scales)[..., None], 0, last_code)
    blocks["scales"] = pack_scales(steps, minima)
    blocks["codes"] = pack_nibbles((codes & 15).reshape(-1, 4, 2, 32)).reshape(-1, 128)
    if "fifths" in (fields.names or ()):
        blocks["fifths"] = pack_fields(codes >> 4, 1)
    return blocks


def decode_q6_k(blocks_n: np.ndarray) -> np.ndarray:
    """(scale * step) * (code - 32), step -128..127."""
    lower = unpack_nibbles(blocks_n["lower"].reshape(-1, 2, 64)).reshape(-1, 16, 16)
    upper = unpack_fields(blocks_n["upper"].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    scales = column(blocks_n["scale"]) * blocks_n["steps"]
    return (scales[..., None] * ((lower | upper << 4).astype(np.int8) - np.int8(32))).reshape(-1, 256)


def encode_q6_k(values: np.ndarray) -> np.ndarray:
    """The value of largest magnitude of a sub-block gets code 0 (-32 steps), so steps take the opposite sign."""
    blocks = np.empty(len(values), Q6_K_FIELDS)
    values_nSE = values.reshape(-1, 16, 16)
    wanted = signed_peak(values_nSE)[..., 0] / -32
    blocks["scale"] = to_half(np.abs(wanted).max(axis=1) / 127)
    blocks["steps"] = codes_of(wanted * reciprocal(column(blocks["scale"])), -127, 127)
    scales = column(blocks["scale"]) * blocks["steps"]
    codes = codes_of(values_nSE * reciprocal(scales)[..., None], -32, 31) + 32
    blocks["lower"] = pack_nibbles((codes & 15).reshape(-1, 2, 2, 64)).reshape(-1, 128)
    blocks["upper"] = pack_fields((codes >> 4).reshape(-1, 2, 4, 32), 2).reshape(-1, 64)
    return blocks


CODECS = {
    "q4_k": Codec(Q4_K_FIELDS, decode_k, lambda values: encode_k(values, Q4_K_FIELDS, 15)),
    "q5_k": Codec(Q5_K_FIELDS, decode_k, lambda values: encode_k(values, Q5_K_FIELDS, 31)),
    "q6_k": Codec(Q6_K_FIELDS, decode_q6_k, encode_q6_k),
}
