"""Eager torch on a CPU or a GPU, with gradients. Needs the extra `torch`."""

from minicpm4.executors.torch.executor import BACKEND, TorchExecutor, TorchOptions

__all__ = ["BACKEND", "TorchExecutor", "TorchOptions"]
