"""One product through the native executor's own machinery: a program that looks rows up, rounds them, and multiplies."""

from __future__ import annotations

import numpy as np

from minicpm4 import _native
from minicpm4.model import PackedTensor, pages_for
from minicpm4.model.step import single_step

POOL, ARENA = _native.ThreadPool(1), _native.Arena()
UNUSED = {"out": -1, "a": -1, "b": -1, "weight": -1, "vector": -1, "layer": -1, "factor": 0.0}


def native_product(isa: str, x_TK: np.ndarray, weight: PackedTensor, *, kind: str) -> np.ndarray:
    """x, its rows rounded to kind ("int8" or "int16"), times the transposed weight [N, K] -> float32 [T, N]."""
    num_rows, columns = x_TK.shape
    program = _native.Program(
        isa,
        POOL,
        max_rows=num_rows,
        code_bytes=np.dtype(kind).itemsize,
        has_bf16_prompts=False,
        num_pages=pages_for(num_rows),
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        kv_format="f32",
        sparse=None,
    )
    table = program.add_weight(_native.pack("f32", num_rows, columns, x_TK.view(np.uint8).reshape(num_rows, -1), POOL, ARENA))
    factor = program.add_weight(_native.pack(weight.format.name, *weight.shape, weight.data, POOL, ARENA))
    x, out = program.add_buffer(columns), program.add_buffer(weight.num_rows)
    program.begin_phase(_native.PhaseKind.rows, False)
    program.add(_native.Op.embed, **UNUSED | {"out": x, "weight": table, "factor": 1.0})
    program.add(_native.Op.quantize, **UNUSED | {"a": x})
    program.begin_phase(_native.PhaseKind.products, False)
    program.begin_job()
    program.add(_native.Op.linear, **UNUSED | {"out": out, "a": x, "weight": factor})
    each = np.arange(num_rows, dtype=np.int32)
    s = single_step(each, num_logits=num_rows)
    result, *_ = program.run(s.tokens_T, s.starts_S1, s.lengths_S, s.pages_SP, s.logit_rows_R, s.numerics_S, s.adapters_S)
    return np.array(result)
