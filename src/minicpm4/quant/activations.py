"""Activations as whole numbers, or in bfloat16: what a weight is multiplied with when an executor is told so.

This is the algorithm to the bit; every executor that offers coded activations follows it.
"""

# T rows, K columns

from __future__ import annotations

import numpy as np

from minicpm4.model.tensors import StorageFormat
from minicpm4.quant.codec import reciprocal
from minicpm4.quant.formats import dequantize, quantize

GROUP_COLUMNS = 32  # columns that share a scale; divides every quantized format's block
LARGEST_CODES = {"int8": 127, "int16": 254 * 127 + 126}  # integer kernels take an int16 apart: 254 * high + low, a byte each


def quantize_activations(x_TK: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 or int16 [T, K], as kind says, and scales float32 [T, K / 32]; a value is scale * code, at most half a scale off.

    Scale: the group's largest magnitude / the largest code, in float32. Code: x * (1 / scale) to the nearest, ties to even; 0 where
    the scale is not a normal float32. The scale of a group that is not finite is NaN. K is a multiple of 32.
    """
    assert x_TK.shape[1] % GROUP_COLUMNS == 0, "activations are quantized in groups of 32"
    groups = x_TK.astype(np.float32, copy=False).reshape(len(x_TK), -1, GROUP_COLUMNS)
    is_finite = np.isfinite(groups).all(axis=2, keepdims=True)
    scales = np.where(is_finite, np.abs(groups).max(axis=2, keepdims=True), np.float32(np.nan)) / np.float32(LARGEST_CODES[kind])
    codes = np.rint(np.where(is_finite, groups, 0) * reciprocal(scales)).astype(kind)
    return codes.reshape(x_TK.shape), scales[..., 0]


def round_activations(x_TK: np.ndarray, kind: str) -> np.ndarray:
    """The float32 values that `quantize_activations` stands for; x itself where kind is "f32", what `round_bf16` makes of it for "bf16"."""
    if kind == "f32":
        return x_TK
    if kind == "bf16":
        return round_bf16(x_TK)
    codes, scales = quantize_activations(x_TK, kind)
    return codes * np.repeat(scales, GROUP_COLUMNS, axis=1)


def meets_bf16(form: StorageFormat, columns: int) -> bool:
    """Whether a weight of layers, stored so, is multiplied in bfloat16 where prompts are: all but float32, in whole groups of columns."""
    return form.name != "f32" and columns % GROUP_COLUMNS == 0


def round_bf16(x: np.ndarray) -> np.ndarray:
    """The nearest values of bfloat16, ties to even, as float32.

    Of prompts in bfloat16, activations and the dequantized weights that they meet are rounded so; the product of two is exact, and sums are
    float32. Units for such products take subnormals as zero.
    """
    return dequantize(quantize(x.reshape(-1), "bf16", name="rounded")).reshape(x.shape)
