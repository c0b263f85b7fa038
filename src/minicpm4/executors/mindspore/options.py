"""What the MindSpore executor is told."""

from __future__ import annotations

from dataclasses import dataclass

from minicpm4.executors.base import ThreadedOptions


@dataclass(frozen=True, kw_only=True)
class MindSporeOptions(ThreadedOptions):
    """threads, isa: of the CPU's kernels; isa None for the best. device: "cpu" or "ascend"."""

    isa: str | None = None
