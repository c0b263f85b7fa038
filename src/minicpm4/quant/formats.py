"""Between stored tensors and float32 values, for every format of `model.tensors.STORAGE_FORMATS`.

What the bits of a block mean is beside its codec (dense, blocks, kquants, ternary); here blocks become tensors, a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.model import PackedTensor
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import blocks, dense, kquants, ternary
from minicpm4.quant.codec import Codec

CODECS: Mapping[str, Codec] = {**dense.CODECS, **blocks.CODECS, **kquants.CODECS, **ternary.CODECS}
ELEMENTS_AT_ONCE = 1 << 18  # intermediate arrays stay in the cache of one core


def row_groups(num_rows: int, num_columns: int) -> Iterator[slice]:
    step = max(1, ELEMENTS_AT_ONCE // num_columns)
    return (slice(start, start + step) for start in range(0, num_rows, step))


def dequantize(tensor: PackedTensor, rows: slice | np.ndarray | None = None) -> np.ndarray:
    """A new float32 array: [rows, columns] of a matrix, or of those of its rows that are asked for; [columns] of a vector.

    rows: of a matrix only, what numpy takes as the index of an axis. Any bytes decode; scales that are not finite give
    infinities and NaN.
    """
    assert rows is None or len(tensor.shape) == 2, "only a matrix has rows"
    codec, num_columns = CODECS[tensor.format.name], tensor.shape[-1]
    data = tensor.data if rows is None else tensor.data[rows]
    values = np.empty((len(data), num_columns), np.float32)
    with np.errstate(all="ignore"):
        for group in row_groups(len(data), num_columns):
            packed = np.ascontiguousarray(data[group])
            values[group] = codec.decode(packed.reshape(-1).view(codec.fields)).reshape(-1, num_columns)
    return values if len(tensor.shape) == 2 else values[0]


def quantize(values: np.ndarray, format_name: str, *, name: str, encode: Callable[[np.ndarray], np.ndarray] | None = None) -> PackedTensor:
    """A matrix [rows, columns] or vector [columns] in the given format, each block for itself.

    name: the tensor's. encode: another encoder than the format's own. ConfigError for a format that there is not, or blocks that
    do not divide a row; CheckpointError for values that the format cannot hold (all hold finite values up to 65504; f32 and bf16
    hold anything).
    """
    if format_name not in CODECS:
        raise ConfigError(f"there is no tensor format {format_name!r}", hint=f"choose one of {', '.join(CODECS)}")
    codec, storage = CODECS[format_name], STORAGE_FORMATS[format_name]
    matrix = np.atleast_2d(np.asarray(values, np.float32))
    if matrix.shape[-1] % storage.block_elements:
        raise ConfigError(
            f"{name}: {format_name} stores blocks of {storage.block_elements}, rows have {matrix.shape[-1]} elements",
            hint="choose a format of smaller blocks, or f16",
        )
    data = np.empty((len(matrix), storage.row_bytes(matrix.shape[-1])), np.uint8)
    try:
        for group in row_groups(*matrix.shape):
            packed = (encode or codec.encode)(matrix[group].reshape(-1, storage.block_elements))
            data[group] = packed.view(np.uint8).reshape(-1, data.shape[1])
    except ValueError as error:
        raise CheckpointError(
            f"{name} cannot be stored as {format_name}: {error}", hint="check the tensor for NaN, or choose bf16"
        ) from error
    return PackedTensor(name, storage, tuple(values.shape), data)


def pack_ternary(values: np.ndarray, group: int, *, name: str) -> PackedTensor:
    """A pseudo-quantized matrix, whose every group of columns is a float16 times -1, 0 or 1, without changing a value.

    group: columns that share a scale. ConfigError for a group that there is not, or that does not divide a row; CheckpointError
    for values that are not of that kind.
    """
    if group not in ternary.TERNARY_FIELDS:
        raise ConfigError(f"there are no ternary groups of {group}", hint=f"choose one of {', '.join(map(str, ternary.TERNARY_FIELDS))}")
    return quantize(values, f"ternary_g{group}", name=name, encode=ternary.encode_exact)
