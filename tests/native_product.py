"""One product through the native executor's own machinery: a program that looks rows up, rounds them, and multiplies."""

from __future__ import annotations

import numpy as np

from minicpm4 import _native
from minicpm4.model import PackedTensor

TEAM, ARENA = _native.Team(1), _native.Arena()
UNUSED = {"out": -1, "a": -1, "b": -1, "weight": -1, "vector": -1, "layer": -1, "factor": 0.0}


def native_product(isa: str, x_TK: np.ndarray, weight: PackedTensor, *, kind: str) -> np.ndarray:
    """x, its rows rounded to kind ("int8" or "int16"), times the transposed weight [N, K] -> float32 [T, N]."""
    num_rows, columns = x_TK.shape
    program = _native.Program(
        isa,
        TEAM,
        max_rows=num_rows,
        code_bytes=np.dtype(kind).itemsize,
        has_bf16_prompts=False,
        num_pages=1,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        kv_format="f32",
        sparse=None,
    )
    table = program.add_weight(_native.pack("f32", num_rows, columns, x_TK.view(np.uint8).reshape(num_rows, -1), TEAM, ARENA))
    factor = program.add_weight(_native.pack(weight.format.name, *weight.shape, weight.data, TEAM, ARENA))
    x, out = program.add_buffer(columns), program.add_buffer(weight.num_rows)
    program.begin_phase(_native.PhaseKind.rows, False)
    program.add(_native.Op.embed, **UNUSED | {"out": x, "weight": table, "factor": 1.0})
    program.add(_native.Op.encode, **UNUSED | {"a": x})
    program.begin_phase(_native.PhaseKind.products, False)
    program.begin_job()
    program.add(_native.Op.multiply, **UNUSED | {"out": out, "a": x, "weight": factor})
    each, zeros = np.arange(num_rows, dtype=np.int32), np.zeros(num_rows, np.int32)
    starts, lengths, pages = np.array([0, num_rows], np.int32), np.ones(1, np.int32), np.zeros((1, 1), np.int32)
    # The program makes no use of the vocabulary but to check tokens and to shape the result.
    return program.run(each, zeros, zeros, starts, lengths, pages, each, np.zeros(1, np.int32), max(num_rows, weight.num_rows))[
        :, : weight.num_rows
    ].copy()
