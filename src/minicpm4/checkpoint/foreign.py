"""Says what a file is that was taken for a model's weights and is not. Looks at its first bytes; loads nothing."""

from __future__ import annotations

from pathlib import Path

from minicpm4.errors import CheckpointError

CONVERT = (
    "it is not read, since reading it can run code; convert it to safetensors where you trust it (transformers: save_pretrained) "
    "or to GGUF (llama.cpp: convert_hf_to_gguf.py)"
)
AGAIN = "download the file again, and check that the address leads to the file itself"
FOREIGN_SUFFIXES = frozenset((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".h5", ".msgpack"))
FOREIGN_STARTS = (
    (b"version https://git-lfs", "is a git-LFS pointer, not the file that it stands for", "run: git lfs pull"),
    (b"PK\x03\x04", "is a zip archive, probably a PyTorch checkpoint", CONVERT),
    (b"\x93NUMPY", "is a numpy array file", CONVERT),
    (b"\x89HDF", "is an HDF5 file", CONVERT),
    (b"\x1f\x8b", "is compressed with gzip", "unpack it first"),
    (b"lmgg", "is a GGML file from before GGUF", "get the model as GGUF v3 or safetensors"),
    (b"tjgg", "is a GGML file from before GGUF", "get the model as GGUF v3 or safetensors"),
)


def refuse_foreign(path: Path, head: bytes) -> None:
    """CheckpointError if the file's first bytes (some hundred of them) or its name are those of something known; else returns.

    Call it once the bytes are known not to begin a safetensors or GGUF file, for a safetensors file may begin like a pickle.
    """
    for start, what, hint in FOREIGN_STARTS:
        if head.startswith(start):
            raise CheckpointError(f"{path.name} {what}", hint=hint)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise CheckpointError(f"{path.name} is a web page, not weights", hint=AGAIN)
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        raise CheckpointError(f"{path.name} is a Python pickle", hint=CONVERT)
    if path.suffix.lower() in FOREIGN_SUFFIXES:
        raise CheckpointError(f"{path.name} is of a kind that is not read", hint=CONVERT)
