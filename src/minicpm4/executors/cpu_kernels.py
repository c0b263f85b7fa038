"""What executors that use our C++ kernels have in common: which instruction set runs, what a packed weight takes, the sparse rule.

Knows the C++ module; does not know how an executor puts kernels together.
"""

from __future__ import annotations

import platform

from minicpm4 import _native
from minicpm4.hardware import Choice
from minicpm4.model.config import SparseConfig

USABLE_ISAS = tuple(_native.usable_isas())
# What is said of a CPU without an instruction set, best first.
LACKS = {
    "x86_64": {"amx": "no AMX with bfloat16", "avx512": "no AVX-512 VNNI", "avx2": "no AVX2"},
    "aarch64": {"neon_i8mm": "no i8mm", "neon": "no dot products"},
}


def choose_isa(asked: str | None) -> Choice:
    """The instruction set that will run, and why."""
    if asked is not None:
        return Choice("isa", asked, "asked for")
    lacks = LACKS.get({"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine()), {})
    skipped = [text for isa, text in lacks.items() if isa not in USABLE_ISAS]
    return Choice("isa", USABLE_ISAS[0], f"{skipped[-1]} on this CPU" if skipped else "the best that this CPU has")


def weight_bytes(format_name: str, shape: tuple[int, ...]) -> int:
    """What a weight takes once loaded: a matrix in whole tiles of 16 rows, a vector in float32."""
    return 4 * shape[0] if len(shape) == 1 else _native.packed_bytes(format_name, *shape)


def native_rule(sparse: SparseConfig) -> _native.SparseRule:
    return _native.SparseRule(
        kernel_size=sparse.kernel_size,
        kernel_stride=sparse.kernel_stride,
        init_blocks=sparse.init_blocks,
        local_blocks=sparse.num_local_blocks,
        best_blocks=sparse.num_best_blocks,
        dense_len=sparse.dense_len,
        has_coarse_lse=sparse.has_coarse_lse,
    )
