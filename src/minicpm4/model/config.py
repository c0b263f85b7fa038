"""What a model is: sizes, scales, rotary embedding, sparse attention. Parsed once, frozen, every field concrete.

Knows no file's keys: those of Hugging Face's config.json are `hf_config`'s, a GGUF file's `checkpoint.gguf_model`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minicpm4.errors import ConfigError
from minicpm4.model.step import PAGE_TOKENS

SIZE_LIMIT = 1 << 24  # no size of a real model reaches it; a hostile one must not make us allocate


def require(is_valid: bool, name: str, value: object, expected: str) -> None:
    if not is_valid:
        raise ConfigError(f"{name} is {value!r:.200}, expected {expected}", hint="correct the model's config")


@dataclass(frozen=True)
class RopeConfig:
    """theta: base of the frequencies.

    short_factors, long_factors: divisor of each of the head_dim / 2 frequencies; None means ones. The long ones apply
    to contexts longer than original_context (tokens); None means that the short ones always apply. follows_context: the context that counts
    is the one that a model is loaded with; else it is the model's own at the least, as in MiniCPM's code.
    magnitude: factor on cosines and sines.
    """

    theta: float = 10000.0
    short_factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None
    original_context: int | None = None
    magnitude: float = 1.0
    follows_context: bool = False

    def __post_init__(self) -> None:
        for name, value in (("rope theta", self.theta), ("rope magnitude", self.magnitude)):
            require(math.isfinite(value) and value > 0, name, value, "a positive number")
        for factors in (self.short_factors, self.long_factors):
            require(factors is None or all(math.isfinite(f) and f > 0 for f in factors), "rope factors", factors, "positive numbers")


@dataclass(frozen=True)
class SparseConfig:
    """InfLLM v2 (arXiv 2509.24663). The first seven names and defaults are those of the checkpoints' `sparse_config`; `model.sparse`
    is the rule that they are numbers of.

    kernel_size, kernel_stride: a compressed key is the mean of kernel_size keys in a row; one begins every kernel_stride tokens.
    block_size: tokens of a block, the unit of selection; a page of the cache, and nothing else.
    init_blocks: first blocks of a sequence, which every row sees.
    window_size: tokens of the local window, in whole blocks of which the last is the row's own.
    topk: blocks beside the window: the init_blocks, which count here, and the best topk - init_blocks of those between.
    dense_len: a row that sees at most so many tokens, its own among them, attends to all of them; 0 and -1: no row does.
    has_coarse_lse: whether scores are normalized by a logarithm of summed exponentials over coarser keys (four times the size and
    stride) instead of their own: a quarter of the work where that is a pass of its own, another order where it is close. False is exact.
    """

    kernel_size: int = 32
    kernel_stride: int = 16
    block_size: int = PAGE_TOKENS
    init_blocks: int = 1
    window_size: int = 2048
    topk: int = 64
    dense_len: int = 8192
    has_coarse_lse: bool = False

    def __post_init__(self) -> None:
        for name in ("kernel_size", "kernel_stride", "block_size", "init_blocks", "window_size", "topk"):
            require(0 < getattr(self, name) < SIZE_LIMIT, f"sparse {name}", getattr(self, name), "a positive whole number")
        block, stride = self.block_size, self.kernel_stride
        require(block == PAGE_TOKENS, "sparse block_size", block, f"{PAGE_TOKENS}, a page of the cache")
        require(self.dense_len >= -1, "sparse dense_len", self.dense_len, "-1 (never dense) or a number of tokens")
        require(self.window_size % block == 0, "sparse window_size", self.window_size, f"a multiple of the block, {block}")
        require(self.topk >= self.init_blocks, "sparse topk", self.topk, f"at least init_blocks, {self.init_blocks}, which it counts")
        require(block % stride == 0, "sparse kernel_stride", stride, f"a divisor of the block, {block}")
        is_whole = self.kernel_size % stride == 0 and self.kernel_size <= block
        require(is_whole, "sparse kernel_size", self.kernel_size, f"a multiple of kernel_stride, {stride}, at most a block, {block}")

    @property
    def num_local_blocks(self) -> int:
        return self.window_size // self.block_size

    @property
    def num_best_blocks(self) -> int:
        """Blocks that are chosen by their scores."""
        return self.topk - self.init_blocks

    @property
    def max_blocks(self) -> int:
        """The most blocks that a sparse row attends to; 96 by default."""
        return self.num_local_blocks + self.topk

    @property
    def compressed_per_block(self) -> int:
        return self.block_size // self.kernel_stride


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of the Llama family with MiniCPM's scales, and what Qwen adds.

    embedding_scale multiplies embeddings, residual_scale every branch that is added to the residual stream,
    1 / logit_divisor the last hidden state before the head; all are 1 for a plain Llama.
    biases: the roles of layer matrices whose products a vector is added to, of "q", "k", "v", "o", "gate", "up" and "down". has_head_norms:
    each head of queries and keys is normalized before it is turned.
    context_length: the tokens that the published model is made for. bos_id and eos_ids come from the config; the tokenizer may know better.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    norm_eps: float = 1e-5
    rope: RopeConfig = RopeConfig()
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0
    has_tied_head: bool = False
    biases: frozenset[str] = frozenset()
    has_head_norms: bool = False
    sparse: SparseConfig | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"):
            value = getattr(self, name)
            require(isinstance(value, int) and 0 < value < SIZE_LIMIT, name, value, "a positive whole number")
        require(0 < self.context_length < 1 << 31, "context_length", self.context_length, "a positive whole number")
        require(self.num_layers <= 1024, "num_layers", self.num_layers, "at most 1024")
        require(self.num_heads % self.num_kv_heads == 0, "num_heads", self.num_heads, f"a multiple of num_kv_heads, {self.num_kv_heads}")
        require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "even")
        for name in ("norm_eps", "embedding_scale", "residual_scale", "logit_divisor"):
            require(math.isfinite(getattr(self, name)) and getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for factors in (self.rope.short_factors, self.rope.long_factors):
            require(
                factors is None or len(factors) == self.head_dim // 2,
                "rope factors",
                factors,
                f"{self.head_dim // 2} numbers, one a frequency",
            )

    @property
    def usual_context(self) -> int:
        """The context that is chosen where none is asked for: as far as a rope that follows it keeps the short factors."""
        is_short = self.rope.follows_context and self.rope.original_context and self.rope.short_factors != self.rope.long_factors
        return min(self.context_length, self.rope.original_context or self.context_length) if is_short else self.context_length


def is_in_range(number: Any) -> bool:
    """Whether a file's number is one that arithmetic cannot choke on: finite, and a whole one of at most 63 bits."""
    return abs(number) < 1 << 63 if isinstance(number, int) else math.isfinite(number)


class KeyReader:
    """Reads values out of somebody else's mapping, checks their types, and remembers which keys nobody asked for."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values, self.source, self.seen = values, source, set[str]()

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        self.seen.add(key)
        value = self.values.get(key)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63:
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{self.source}: {key} is {value!r:.80}, expected {kind.__name__}", hint="correct the model's config")
        if kind in (int, float) and not is_in_range(value):
            raise ConfigError(f"{self.source}: {key} is out of range", hint="correct the model's config")
        return value

    def need(self, key: str, kind: type) -> Any:
        value = self.get(key, kind)
        if value is None:
            raise ConfigError(f"{self.source}: {key} is missing", hint="check that this is a causal language model's config")
        return value

    def unread(self) -> list[str]:
        return sorted(str(key) for key in self.values.keys() - self.seen)
