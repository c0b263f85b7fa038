"""What a checkpoint's weights are known by without reading all of them: for caches of what was made of them.

Two checkpoints of one fingerprint hold the same weights in practice: files of the same sizes and times of change, tensors of the
same names, formats, shapes and places, and the same bytes at the beginning, in the middle and at the end of each of them. Where
the files lie does not count.
"""

from __future__ import annotations

from hashlib import blake2b

from minicpm4.checkpoint.checkpoint import Checkpoint

SAMPLED_BYTES = 4096


def fingerprint(checkpoint: Checkpoint) -> str:
    """32 hexadecimal digits. Reads 12 KB of each tensor."""
    digest = blake2b(digest_size=16)
    for path in checkpoint.files:
        status = path.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    for name, source in checkpoint.sources.items():
        digest.update(f"{name!r} {source.heads} {source.info}\n".encode())
        for file, info in source.parts:
            digest.update(f"{info}\n".encode())
            for at in (0, info.nbytes // 2, max(0, info.nbytes - SAMPLED_BYTES)):
                digest.update(file.file.read(info.offset + at, min(SAMPLED_BYTES, info.nbytes - at)))
    checkpoint.release()
    return digest.hexdigest()
