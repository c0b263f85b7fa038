"""How much memory a model will take, and how much context fits: computed before anything is loaded, printed, and enforced."""

from __future__ import annotations

from dataclasses import dataclass

from minicpm4.checkpoint import Checkpoint
from minicpm4.errors import CapacityError, ConfigError
from minicpm4.executors import backend, compressed_bytes_per_page, kv_bytes_per_token
from minicpm4.executors.base import BackendOptions
from minicpm4.model import PAGE_TOKENS, ModelConfig, pages_for
from minicpm4.model.config import SparseConfig

SPARE = 256 << 20  # kept free for the rest: a step's activations (512 tokens of MiniCPM4-8B take 100 MB), logits (0.3 MB each), Python
MIN_CONTEXT = 512  # a context shorter than this is not chosen for the user


@dataclass(frozen=True)
class MemoryPlan:
    """weight_bytes: the weights as the executor keeps them. kv_bytes: of a cache that holds cache_tokens, compressed keys with it.

    context_length: the most tokens of one sequence, and why it is what it is. available: bytes free now on the device, None
    where unknown; SPARE of them are left to activations, logits and the program itself.
    """

    weight_bytes: int
    kv_bytes: int
    context_length: int
    context_reason: str
    cache_tokens: int
    available: int | None

    @property
    def num_pages(self) -> int:
        return pages_for(self.cache_tokens)

    def __str__(self) -> str:
        free = "unknown" if self.available is None else f"{self.available / 1e9:.2f} GB"
        return (
            f"weights {self.weight_bytes / 1e6:.0f} MB + cache {self.kv_bytes / 1e6:.0f} MB for {self.cache_tokens} tokens "
            f"+ {SPARE / 1e6:.0f} MB for the rest, {free} free; "
            f"context {self.context_length} ({self.context_reason})"
        )


def plan_memory(
    checkpoint: Checkpoint,
    config: ModelConfig,
    *,
    executor: str,
    options: BackendOptions,
    context_length: int | None = None,
    cache_tokens: int | None = None,
    sparse: SparseConfig | None = None,
) -> MemoryPlan:
    """The plan for these options; None means the model's own context, or as much of it as fits, and a cache of one context.

    options: of the executor. config, sparse: those that will run, which may reach further than the checkpoint's own config.
    ConfigError for sizes that cannot be; CapacityError where the plan does not fit the device's free memory, with the numbers;
    UnsupportedError where the executor or the device is not there to be asked.
    """
    chosen = backend(executor)
    page_bytes = compressed_bytes_per_page(config, sparse, executor=executor, kv_format=options.kv_format)
    token_bytes = kv_bytes_per_token(config, options.kv_format) + -(-page_bytes // PAGE_TOKENS)
    weight_bytes = sum(chosen.weight_bytes(info.format, info.shape, options) for info in checkpoint.tensors.values())
    available = chosen.free_memory(options)
    room = None if available is None else max(0, available - weight_bytes - SPARE) // token_bytes
    context, reason = choose_context(config, asked=context_length, cache_tokens=cache_tokens, room=room)
    tokens = max(PAGE_TOKENS, context if cache_tokens is None else cache_tokens)
    plan = MemoryPlan(weight_bytes, pages_for(tokens) * PAGE_TOKENS * token_bytes, context, reason, tokens, available)
    if room is not None and tokens > room:
        raise CapacityError(f"the model does not fit: {plan}", hint=f"a cache of at most {room} tokens fits; lower -c, or free memory")
    return plan


def choose_context(config: ModelConfig, *, asked: int | None, cache_tokens: int | None, room: int | None) -> tuple[int, str]:
    for name, value in (("context", asked), ("cache", cache_tokens)):
        if value is not None and not 1 <= value < 1 << 31:
            raise ConfigError(f"a {name} of {value} tokens was asked for", hint="give a positive number of tokens")
    if asked is not None:
        if asked > config.context_length:
            raise CapacityError(
                f"a context of {asked} tokens was asked for, the model is made for {config.context_length}",
                hint="lower -c, or raise max_position_embeddings with fitting rope factors in the model's config",
            )
        return asked, "asked for"
    if room is not None and cache_tokens is None and MIN_CONTEXT <= room < config.usual_context:
        return room // PAGE_TOKENS * PAGE_TOKENS, f"as much of the model's {config.context_length} as the memory holds"
    if config.usual_context < config.context_length:
        return (
            config.usual_context,
            f"what the model was trained for first; up to {config.context_length} by other rope factors, where asked for",
        )
    return config.context_length, "the model's own"
