"""torch's settings of the whole process, as one executor wants them while it computes, and as they were before after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def own_settings(*, threads: int, device: torch.device) -> Iterator[None]:
    """threads: of the CPU. float32 is float32 inside: no bfloat16 or TF32 in products, where the process allows them.

    torch keeps these for the process: another thread that computes with torch meanwhile may meet them.
    """
    products: Any = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, precision = torch.get_num_threads(), products.fp32_precision
    try:
        if threads != before:
            torch.set_num_threads(threads)
        if precision not in ("none", "ieee"):
            products.fp32_precision = "ieee"
        yield
    finally:
        if threads != before:
            torch.set_num_threads(before)
        if precision not in ("none", "ieee"):
            products.fp32_precision = precision
