"""Eager torch, on a CPU or on CUDA: the same forward pass with autograd. Needs the extra `torch`."""

from minicpm4.executors.torch.executor import CAPABILITIES, TorchExecutor, create, free_memory, weight_bytes

__all__ = ["CAPABILITIES", "TorchExecutor", "create", "free_memory", "weight_bytes"]
