"""Activations in int8, the form in which integer kernels multiply them with quantized weights.

This is the definition; the native kernels do the same, and the reference executor emulates them with it.
"""

# T rows, K features

from __future__ import annotations

import numpy as np

ACTIVATION_GROUP = 32


def quantize_activations(x_TK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes [T, K] and float32 scales [T, K / 32]: scale = max|x| / 127, code = x * (1 / scale) to the nearest, ties to even."""
    groups = x_TK.reshape(len(x_TK), -1, ACTIVATION_GROUP).astype(np.float32, copy=False)
    scales = np.abs(groups).max(axis=2) / np.float32(127)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    return np.rint(groups * inverse[:, :, None]).astype(np.int8).reshape(x_TK.shape), scales


def round_activations(x_TK: np.ndarray) -> np.ndarray:
    """The values that the codes stand for, float32 [T, K]."""
    codes, scales = quantize_activations(x_TK)
    return (codes.reshape(*scales.shape, ACTIVATION_GROUP) * scales[:, :, None]).reshape(x_TK.shape)
