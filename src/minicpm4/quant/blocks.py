"""q8_0, q4_0, q4_1, q5_0, q5_1: blocks of 32 elements with one scale, and one offset where the name ends in _1.

Layouts are GGUF's. 4-bit codes: element e < 16 is the low half of byte e, element e >= 16 the high half of byte e - 16.
5-bit codes: the lower four bits as 4-bit codes, the fifth of element e is bit e of a little-endian 32-bit number.
Our encoders round against the scale as stored, so that a value within the codes' range is at most half a step off.
"""

# n blocks

from __future__ import annotations

import numpy as np

from minicpm4.quant.codec import Codec, codes_of, column, pack_nibbles, reciprocal, signed_peak, to_half, unpack_nibbles

Q8_0_FIELDS = np.dtype([("scale", "<f2"), ("codes", "i1", 32)])
Q4_0_FIELDS = np.dtype([("scale", "<f2"), ("codes", "u1", 16)])
Q4_1_FIELDS = np.dtype([("scale", "<f2"), ("offset", "<f2"), ("codes", "u1", 16)])
Q5_0_FIELDS = np.dtype([("scale", "<f2"), ("fifths", "<u4"), ("codes", "u1", 16)])
Q5_1_FIELDS = np.dtype([("scale", "<f2"), ("offset", "<f2"), ("fifths", "<u4"), ("codes", "u1", 16)])
BITS = np.arange(32, dtype=np.uint32)


def unpack_codes(blocks_n: np.ndarray) -> np.ndarray:
    """Codes 0..15, or 0..31 where blocks have fifth bits, as uint8 [n, 32]."""
    codes = unpack_nibbles(blocks_n["codes"]).reshape(-1, 32)
    if "fifths" not in (blocks_n.dtype.names or ()):
        return codes
    return codes | ((blocks_n["fifths"][:, None] >> BITS & 1) << 4).astype(np.uint8)


def pack_codes(blocks_n: np.ndarray, codes: np.ndarray) -> None:
    """Writes codes [n, 32] into blocks."""
    blocks_n["codes"] = pack_nibbles((codes & 15).reshape(-1, 2, 16))
    if "fifths" in (blocks_n.dtype.names or ()):
        blocks_n["fifths"] = ((codes >> 4).astype(np.uint32) << BITS).sum(axis=1, dtype=np.uint32)


def decode_q8_0(blocks_n: np.ndarray) -> np.ndarray:
    """scale * code, code -128..127 (encoders stay within -127..127)."""
    return column(blocks_n["scale"]) * blocks_n["codes"]


def encode_q8_0(values: np.ndarray) -> np.ndarray:
    blocks = np.empty(len(values), Q8_0_FIELDS)
    blocks["scale"] = to_half(np.abs(values).max(axis=1) / 127)
    blocks["codes"] = codes_of(values * reciprocal(column(blocks["scale"])), -127, 127)
    return blocks


def decode_q4_0(blocks_n: np.ndarray) -> np.ndarray:
    """scale * (code - 8)."""
    return column(blocks_n["scale"]) * (unpack_codes(blocks_n).astype(np.int8) - np.int8(8))


def decode_q5_0(blocks_n: np.ndarray) -> np.ndarray:
    """scale * (code - 16)."""
    return column(blocks_n["scale"]) * (unpack_codes(blocks_n).astype(np.int8) - np.int8(16))


def encode_centred(values: np.ndarray, fields: np.dtype[np.void], zero: int) -> np.ndarray:
    """The value of largest magnitude gets code 0, so the scale takes the opposite sign; its mirror image is one step out of range."""
    blocks = np.empty(len(values), fields)
    blocks["scale"] = to_half(signed_peak(values)[:, 0] / -zero)
    pack_codes(blocks, codes_of(values * reciprocal(column(blocks["scale"])) + zero, 0, 2 * zero - 1))
    return blocks


def decode_with_offset(blocks_n: np.ndarray) -> np.ndarray:
    """scale * code + offset."""
    return column(blocks_n["scale"]) * unpack_codes(blocks_n) + column(blocks_n["offset"])


def encode_with_offset(values: np.ndarray, fields: np.dtype[np.void], last_code: int) -> np.ndarray:
    blocks = np.empty(len(values), fields)
    low, high = values.min(axis=1), values.max(axis=1)
    blocks["offset"] = to_half(low)
    blocks["scale"] = to_half((high - low) / last_code)
    steps = (values - column(blocks["offset"])) * reciprocal(column(blocks["scale"]))
    pack_codes(blocks, codes_of(steps, 0, last_code))
    return blocks


CODECS = {
    "q8_0": Codec(Q8_0_FIELDS, decode_q8_0, encode_q8_0),
    "q4_0": Codec(Q4_0_FIELDS, decode_q4_0, lambda values: encode_centred(values, Q4_0_FIELDS, 8)),
    "q4_1": Codec(Q4_1_FIELDS, decode_with_offset, lambda values: encode_with_offset(values, Q4_1_FIELDS, 15)),
    "q5_0": Codec(Q5_0_FIELDS, decode_q5_0, lambda values: encode_centred(values, Q5_0_FIELDS, 16)),
    "q5_1": Codec(Q5_1_FIELDS, decode_with_offset, lambda values: encode_with_offset(values, Q5_1_FIELDS, 31)),
}
