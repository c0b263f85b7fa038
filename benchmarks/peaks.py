"""What this machine could do: bytes read from memory and operations computed a second, by as many threads. Measured, never looked up."""

from __future__ import annotations

from dataclasses import dataclass

from minicpm4 import _native
from minicpm4.deploy.bench import memory_bandwidth

REPEATS = 5  # the best is taken: a peak is what was once reached


@dataclass(frozen=True)
class Peaks:
    """Of so many threads together: bytes_per_second read from memory; Gop/s, multiplications and additions counted, of products of int8
    that the instruction set has, of bf16 by matrices where it has those, else by the dot product where the CPU has one, of float32's."""

    threads: int
    bytes_per_second: float
    int8: float
    bf16: float | None
    f32: float


def measure_peaks(threads: int, *, isa: str | None = None) -> Peaks:
    """Takes some 0.4 s. isa: of the products; the best of this machine unless given."""
    pool, chosen = _native.ThreadPool(threads), isa or _native.usable_isas()[0]

    def rate(number: str) -> float | None:
        operations = _native.peak_rate(chosen, number, pool, REPEATS)
        return None if operations is None else operations / 1e9

    return Peaks(threads, memory_bandwidth(threads) or 0.0, rate("int8") or 0.0, rate("bf16"), rate("f32") or 0.0)


def peaks_text(peaks: Peaks) -> str:
    bf16 = "none" if peaks.bf16 is None else f"{peaks.bf16:.0f}"
    threads = f"{peaks.threads} thread{'s' if peaks.threads > 1 else ''}"
    return f"{threads}: {peaks.bytes_per_second / 1e9:.1f} GB/s read, {peaks.int8:.0f} Gop/s int8, {bf16} bf16, {peaks.f32:.0f} f32"
