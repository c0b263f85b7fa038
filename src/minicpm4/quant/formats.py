"""Between float32 and every storage format: one pair of functions, one table.

The codecs that the table names hold each format's specification to the bit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minicpm4.errors import UnsupportedError
from minicpm4.model import STORAGE_FORMATS, PackedTensor
from minicpm4.quant import blocks, super_blocks

Codec = Callable[[np.ndarray], np.ndarray]


def decode_bf16(raw: np.ndarray) -> np.ndarray:
    """2 bytes: the upper half of a float32."""
    return (np.ascontiguousarray(raw).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def encode_bf16(values: np.ndarray) -> np.ndarray:
    """Rounds to nearest, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16).view(np.uint8)


def decode_as(dtype: type) -> Codec:
    return lambda raw: np.ascontiguousarray(raw).view(dtype).astype(np.float32)


def encode_as(dtype: type) -> Codec:
    return lambda values: values.astype(dtype).view(np.uint8)


# decode: uint8 [B, block bytes] -> float32 [B, block elements]; encode: the reverse
CODECS: dict[str, tuple[Codec, Codec]] = {
    "f32": (decode_as(np.float32), encode_as(np.float32)),
    "f16": (decode_as(np.float16), encode_as(np.float16)),
    "bf16": (decode_bf16, encode_bf16),
    "q8_0": (blocks.decode_q8_0, blocks.encode_q8_0),
    "q4_0": (blocks.decode_q4_0, blocks.encode_q4_0),
    "q4_1": (blocks.decode_q4_1, blocks.encode_q4_1),
    "q5_0": (blocks.decode_q5_0, blocks.encode_q5_0),
    "q5_1": (blocks.decode_q5_1, blocks.encode_q5_1),
    "q4_k": (super_blocks.decode_q4_k, super_blocks.encode_q4_k),
    "q5_k": (super_blocks.decode_q5_k, super_blocks.encode_q5_k),
    "q6_k": (super_blocks.decode_q6_k, super_blocks.encode_q6_k),
    "tq1_0": (super_blocks.decode_tq1_0, super_blocks.encode_tq1_0),
    "tq2_0": (super_blocks.decode_tq2_0, super_blocks.encode_tq2_0),
}


def dequantize(tensor: PackedTensor) -> np.ndarray:
    """The tensor's values, float32 of its shape. Take rows first where only some are wanted."""
    decode, _ = CODECS[tensor.format.name]
    raw = np.ascontiguousarray(tensor.data).reshape(-1, tensor.format.block_bytes)
    return decode(raw).astype(np.float32, copy=False).reshape(tensor.shape)


def quantize(values: np.ndarray, format_name: str, *, name: str) -> PackedTensor:
    """Values [rows, columns] or [columns] in the given format, each block by itself: nearest codes, no search.

    Raises UnsupportedError where a row is not a whole number of the format's blocks.
    """
    storage = STORAGE_FORMATS[format_name]
    if values.shape[-1] % storage.block_elements:
        raise UnsupportedError(
            f"{name}: rows of {values.shape[-1]} are not whole blocks of {storage.block_elements}, which {format_name} needs",
            hint="choose q8_0, q4_0 or another format with smaller blocks",
        )
    _, encode = CODECS[format_name]
    raw = encode(np.ascontiguousarray(values, np.float32).reshape(-1, storage.block_elements))
    num_rows = values.shape[0] if values.ndim == 2 else 1
    return PackedTensor(name, storage, tuple(values.shape), raw.reshape(num_rows, -1))
