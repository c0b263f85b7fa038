"""The truth in tests: numpy, float32, one obvious line for each operation. Slow, and needs nothing but numpy."""

from minicpm4.executors.reference.executor import BACKEND, ReferenceExecutor, ReferenceOptions

__all__ = ["BACKEND", "ReferenceExecutor", "ReferenceOptions"]
