"""Executors: one folder each, all running the same forward pass. `reference` is the truth, `native` the default."""

from minicpm4.executors.base import EXECUTORS, Capabilities, Executor, ExecutorOptions, WeightLoader, create_executor

__all__ = ["EXECUTORS", "Capabilities", "Executor", "ExecutorOptions", "WeightLoader", "create_executor"]
