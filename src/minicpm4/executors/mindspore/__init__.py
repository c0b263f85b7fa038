"""MindSpore in graph mode, on a CPU or on an Ascend NPU: the shared forward pass, traced once a size. Needs the extra `mindspore`."""

from minicpm4.executors.cpu_kernels import weight_bytes
from minicpm4.executors.mindspore.executor import CAPABILITIES, MindSporeExecutor, create, free_memory

__all__ = ["CAPABILITIES", "MindSporeExecutor", "create", "free_memory", "weight_bytes"]
