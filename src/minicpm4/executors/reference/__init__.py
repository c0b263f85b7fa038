"""The truth in tests: numpy, float32, one obvious line for each operation. Slow, and needs nothing but numpy."""

from minicpm4.executors.reference.executor import CAPABILITIES, ReferenceExecutor, create, free_memory, weight_bytes

__all__ = ["CAPABILITIES", "ReferenceExecutor", "create", "free_memory", "weight_bytes"]
