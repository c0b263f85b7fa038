"""The default executor on a CPU: the forward pass recorded once and replayed in C++ (native/)."""

from minicpm4.executors.cpu_kernels import weight_bytes
from minicpm4.executors.native.executor import CAPABILITIES, NativeExecutor, create, free_memory, read_bandwidth

__all__ = ["CAPABILITIES", "NativeExecutor", "create", "free_memory", "read_bandwidth", "weight_bytes"]
