"""What native/bindings.cc offers to Python; see there."""

from enum import Enum

import numpy as np

class ThreadPool:
    def __init__(self, workers: int) -> None: ...
    @property
    def size(self) -> int: ...

class Arena:
    def __init__(self) -> None: ...

class PackedWeight:
    @property
    def nbytes(self) -> int: ...
    def unpack(self, first: int, last: int) -> np.ndarray: ...
    def bytes(self) -> np.ndarray: ...
    def checksum(self, pool: ThreadPool) -> int: ...

PACKED_FORM: str

def pack(format: str, rows: int, columns: int, stored: np.ndarray, pool: ThreadPool, arena: Arena) -> PackedWeight: ...
def read_packed(
    format: str, rows: int, columns: int, *, file: int, offset: int, checksum: int, pool: ThreadPool, arena: Arena
) -> PackedWeight: ...
def packed_bytes(format: str, rows: int, columns: int) -> int: ...
def usable_isas() -> list[str]: ...
def has_bf16_matrices(isa: str) -> bool: ...
def read_bandwidth(isa: str, pool: ThreadPool, bytes: int, repeats: int) -> float: ...
def peak_rate(isa: str, number: str, pool: ThreadPool, repeats: int) -> float | None: ...

class Op(Enum):
    embed = 0
    scale = 1
    rms_norm = 2
    rms_norm_heads = 3
    add_scaled = 4
    add_bias = 5
    swiglu = 6
    rotation = 7
    rope = 8
    take = 9
    quantize = 10
    store_keys = 11
    store_values = 12
    linear = 13
    attend = 14
    merge = 15
    block_maxima = 16
    compress_keys = 17
    select_blocks = 18

class PhaseKind(Enum):
    rows = 0
    products = 1
    tasks = 2

class SparseRule:
    def __init__(
        self,
        *,
        kernel_size: int,
        kernel_stride: int,
        init_blocks: int,
        local_blocks: int,
        best_blocks: int,
        dense_len: int,
        has_coarse_lse: bool,
    ) -> None: ...

class Program:
    def __init__(
        self,
        isa: str,
        pool: ThreadPool,
        *,
        max_rows: int,
        code_bytes: int,
        has_bf16_prompts: bool,
        num_pages: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        kv_format: str,
        sparse: SparseRule | None,
    ) -> None: ...
    def add_weight(self, weight: PackedWeight) -> int: ...
    def add_vector(self, values: np.ndarray) -> int: ...
    def add_buffer(self, columns: int, is_local: bool = False) -> int: ...
    def begin_phase(self, kind: PhaseKind, over_logit_rows: bool) -> None: ...
    def begin_job(self) -> None: ...
    def add(self, op: Op, *, out: int, a: int, b: int, weight: int, vector: int, layer: int, factor: float) -> None: ...
    @property
    def kv_bytes(self) -> int: ...
    @property
    def task_columns(self) -> int: ...
    def chosen_blocks(self) -> np.ndarray: ...
    def run(
        self,
        tokens: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        pages: np.ndarray,
        logit_rows: np.ndarray,
        numerics: np.ndarray,
        adapters: np.ndarray,
        branches: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
    def copy_slots(self, pages: np.ndarray, start: int, rows: np.ndarray) -> None: ...
    def keep_hidden(self, buffer: int) -> None: ...
    @property
    def tree_pages(self) -> tuple[int, int]: ...
    def copy_pages(self, sources: np.ndarray, targets: np.ndarray) -> None: ...
    def randomize(self, pages: np.ndarray, seed: int) -> None: ...

class SharedThreadPool:
    def __init__(self, workers: int) -> None: ...

class WeightHandle:
    def __init__(self, isa: str, pool: SharedThreadPool, packed: PackedWeight) -> None: ...
    @property
    def address(self) -> int: ...

class AttentionHandle:
    def __init__(
        self,
        isa: str,
        pool: SharedThreadPool,
        *,
        max_rows: int,
        num_pages: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        kv_format: str,
        sparse: SparseRule | None,
    ) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def kv_bytes(self) -> int: ...
    def copy_pages(self, sources: np.ndarray, targets: np.ndarray) -> None: ...
    def randomize(self, pages: np.ndarray, seed: int) -> None: ...
