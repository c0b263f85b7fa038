"""Executors: one folder each, all running the same forward pass. `reference` is the truth, `native` the default."""

from minicpm4.executors.backend import Preferences, backend, compressed_bytes_per_page, create_executor, kv_bytes_per_token, resolve_options
from minicpm4.executors.base import EXECUTORS, CacheSize, Executor, StepResult

__all__ = [
    "EXECUTORS",
    "CacheSize",
    "Executor",
    "Preferences",
    "StepResult",
    "backend",
    "compressed_bytes_per_page",
    "create_executor",
    "kv_bytes_per_token",
    "resolve_options",
]
