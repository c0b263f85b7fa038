"""Stored blocks for tests: random ones whose scales are ordinary numbers, and the public `gguf` package's reading of them."""

import gguf
import numpy as np

from minicpm4.model import PackedTensor
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant.formats import CODECS

GGUF_FORMATS = [name for name in STORAGE_FORMATS if not name.startswith(("ternary_", "q2_0"))]  # that the public package knows
BLOCK_FORMATS = [name for name, storage in STORAGE_FORMATS.items() if not storage.is_dense]
SCALE_FIELDS = ("scale", "offset", "minimum_scale", "value")  # the floating-point fields of all codecs


def random_blocks(name: str, count: int, *, seed: int = 0) -> np.ndarray:
    """Blocks [count] of the codec's fields: every bit of the codes is random, scales are normal numbers of either sign."""
    random = np.random.default_rng(seed)
    fields = CODECS[name].fields
    blocks = random.integers(0, 256, count * fields.itemsize, dtype=np.uint8).view(fields)
    for field in set(SCALE_FIELDS) & set(fields.names or ()):
        blocks[field] = random.standard_normal(count)
    if name == "bf16":
        blocks["bits"] = random.standard_normal(count).astype(np.float32).view(np.uint32) >> 16
    return blocks


def random_tensor(name: str, rows: int, columns: int, *, seed: int = 0) -> PackedTensor:
    storage = STORAGE_FORMATS[name]
    blocks = random_blocks(name, rows * columns // storage.block_elements, seed=seed)
    return PackedTensor("random", storage, (rows, columns), blocks.view(np.uint8).reshape(rows, storage.row_bytes(columns)))


def public_values(blocks: np.ndarray, name: str) -> np.ndarray:
    """The values [blocks, elements] that the `gguf` package reads."""
    kind = gguf.GGMLQuantizationType[name.upper()]
    raw = blocks.view(np.uint8).reshape(len(blocks), blocks.dtype.itemsize)
    return gguf.quants.dequantize(raw, kind).astype(np.float32).reshape(len(blocks), -1)
