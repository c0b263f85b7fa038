"""What the bits of stored tensors mean, and how values become them. Knows blocks and scales; nothing of models or files."""

from minicpm4.quant.activations import quantize_activations, round_activations
from minicpm4.quant.formats import dequantize, quantize

__all__ = ["dequantize", "quantize", "quantize_activations", "round_activations"]
