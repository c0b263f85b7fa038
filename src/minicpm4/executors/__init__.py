"""Executors: one folder each, all running the same forward pass. `reference` is the truth, `native` the default."""

from minicpm4.executors.base import (
    EXECUTORS,
    Capabilities,
    Executor,
    ExecutorOptions,
    WeightLoader,
    capabilities_of,
    create_executor,
    executor_module,
    kernel_bytes_per_page,
    kv_bytes_per_token,
)

__all__ = [
    "EXECUTORS",
    "Capabilities",
    "Executor",
    "ExecutorOptions",
    "WeightLoader",
    "capabilities_of",
    "create_executor",
    "executor_module",
    "kernel_bytes_per_page",
    "kv_bytes_per_token",
]
