"""What the MindSpore executor is told."""

from __future__ import annotations

from dataclasses import dataclass

from minicpm4.executors.base import BackendOptions, check_size


@dataclass(frozen=True, kw_only=True)
class MindSporeOptions(BackendOptions):
    """threads, isa: of the CPU's kernels; isa None for the best. device: "cpu" or "ascend"."""

    threads: int = 1
    isa: str | None = None

    def __post_init__(self) -> None:
        check_size("threads", self.threads)
