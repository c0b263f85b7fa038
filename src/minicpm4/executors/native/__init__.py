"""The default executor on a CPU: the forward pass recorded once and replayed in C++ (native/)."""

from minicpm4.executors.native.backend import BACKEND
from minicpm4.executors.native.executor import NativeExecutor, read_bandwidth
from minicpm4.executors.native.options import NativeOptions

__all__ = ["BACKEND", "NativeExecutor", "NativeOptions", "read_bandwidth"]
