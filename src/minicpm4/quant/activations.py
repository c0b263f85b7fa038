"""Activations as int8: what a quantized weight is multiplied with when an executor is told so.

This is the algorithm to the bit; every executor that offers int8 activations follows it.
"""

# T rows, K columns

from __future__ import annotations

import numpy as np

from minicpm4.quant.codec import reciprocal

GROUP_COLUMNS = 32  # columns that share a scale; divides every quantized format's block


def quantize_activations(x_TK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [T, K] in -127..127 and scales float32 [T, K / 32]; a value is scale * code, at most half a scale off.

    Scale: the group's largest magnitude / 127, in float32. Code: x * (1 / scale) to the nearest, ties to even; 0 where 1 / scale
    has no float32. A NaN makes its group's scale NaN. K is a multiple of 32.
    """
    assert x_TK.shape[1] % GROUP_COLUMNS == 0, "activations are quantized in groups of 32"
    groups = x_TK.astype(np.float32, copy=False).reshape(len(x_TK), -1, GROUP_COLUMNS)
    scales = np.abs(groups).max(axis=2) / np.float32(127)
    is_usable = np.isfinite(scales)[..., None]
    codes = np.rint(np.where(is_usable, groups, 0) * reciprocal(scales)[..., None]).astype(np.int8)
    return codes.reshape(x_TK.shape), scales


def round_activations(x_TK: np.ndarray) -> np.ndarray:
    """The float32 values that `quantize_activations` stands for."""
    codes, scales = quantize_activations(x_TK)
    return codes * np.repeat(scales, GROUP_COLUMNS, axis=1)
