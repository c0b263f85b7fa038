"""What the bits of stored tensors mean, and how values become them. Knows blocks and scales; nothing of models or files."""

from minicpm4.quant.activations import quantize_activations, round_activations, round_bf16
from minicpm4.quant.cache import KV_FORMATS, head_bytes, round_cache, round_queries
from minicpm4.quant.formats import dequantize, pack_ternary, quantize

__all__ = [
    "KV_FORMATS",
    "dequantize",
    "head_bytes",
    "pack_ternary",
    "quantize",
    "quantize_activations",
    "round_activations",
    "round_bf16",
    "round_cache",
    "round_queries",
]
