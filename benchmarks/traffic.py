"""What a token costs by the model's file: bytes that decoding reads, operations that a prompt computes. Nothing is timed here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import Case
from minicpm4.checkpoint import open_checkpoint
from minicpm4.executors import kv_bytes_per_token
from minicpm4.model.config import SparseConfig
from minicpm4.model.parameters import EMBEDDING, HEAD

KV_FORMAT = "f16"  # of all engines that are compared


@dataclass(frozen=True)
class Traffic:
    """file_bytes: of the model's file.

    bytes_per_token: what decoding one token of one stream reads: weights, which the streams share, and cache, at half of the run.
    operations_per_token: multiplications and additions of a prompt's token, without the head and attention.
    """

    file_bytes: int
    bytes_per_token: float
    operations_per_token: float


def traffic_of(path: Path, case: Case) -> Traffic:
    """Counted in the file, so that it is the same for every engine, whatever each repacks the weights to."""
    with open_checkpoint(path) as checkpoint:
        config = checkpoint.config
        matrices = {name: info for name, info in checkpoint.tensors.items() if len(info.shape) == 2}
    head = matrices[EMBEDDING if config.has_tied_head else HEAD]
    projections = [info for name, info in matrices.items() if name not in (EMBEDDING, HEAD)]
    weight_bytes = head.nbytes + sum(info.nbytes for info in projections)
    seen = case.context + case.decode / 2
    sparse = config.sparse or SparseConfig()
    if case.attention == "sparse" and seen > sparse.dense_len:
        seen = min(seen, sparse.max_blocks * sparse.block_size)
    cache_bytes = kv_bytes_per_token(config, KV_FORMAT) * seen
    return Traffic(
        file_bytes=path.stat().st_size,
        bytes_per_token=weight_bytes / case.streams + cache_bytes,
        operations_per_token=2.0 * sum(info.shape[0] * info.shape[1] for info in projections),
    )
