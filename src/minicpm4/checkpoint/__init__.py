"""Models on disk: bounded readers of safetensors and GGUF, what they hold by parameter name, and where models come from."""

from minicpm4.checkpoint.checkpoint import Checkpoint, open_checkpoint
from minicpm4.checkpoint.gguf import StringArray, read_gguf
from minicpm4.checkpoint.mapped import TensorFile, TensorInfo
from minicpm4.checkpoint.safetensors import read_safetensors
from minicpm4.checkpoint.source import resolve
from minicpm4.checkpoint.verify import FileHash, hash_files

__all__ = [
    "Checkpoint",
    "FileHash",
    "StringArray",
    "TensorFile",
    "TensorInfo",
    "hash_files",
    "open_checkpoint",
    "read_gguf",
    "read_safetensors",
    "resolve",
]
