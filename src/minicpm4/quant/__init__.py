"""Number formats: what the bits of every storage format mean, and how activations become integers."""

from minicpm4.quant.activations import quantize_activations, round_activations
from minicpm4.quant.formats import dequantize, quantize

__all__ = ["dequantize", "quantize", "quantize_activations", "round_activations"]
