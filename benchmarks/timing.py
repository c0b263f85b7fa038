"""What the microbenchmarks of products and of attention share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

# Operands of a native instruction that an operation does not use.
UNUSED: dict[str, Any] = {"out": -1, "a": -1, "b": -1, "weight": -1, "vector": -1, "layer": -1, "factor": 0.0}


def samples_of(run: Callable[[], None], *, copies: int, repeats: int) -> list[float]:
    """Seconds of one copy in each of the repeats, after a run that is not timed."""
    run()
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        samples.append((time.perf_counter() - start) / copies)
    return samples


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ["---"] * len(header), *rows))
