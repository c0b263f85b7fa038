"""MindSpore in graph mode, on a CPU or on an Ascend NPU: the shared forward pass, traced once a size. Needs the extra `mindspore`."""

from minicpm4.executors.mindspore.executor import BACKEND, MindSporeExecutor
from minicpm4.executors.mindspore.options import MindSporeOptions

__all__ = ["BACKEND", "MindSporeExecutor", "MindSporeOptions"]
