"""From a model's name to everything that answering takes: its files found, its memory planned, its weights in an executor.

"auto" is resolved here, with reasons; what comes out is concrete.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minicpm4.checkpoint import Checkpoint, open_checkpoint, resolve
from minicpm4.checkpoint.fingerprint import fingerprint
from minicpm4.engine.defaults import default_params
from minicpm4.engine.ends import end_choice, end_tokens
from minicpm4.engine.limits import Limits
from minicpm4.engine.memory import MemoryPlan, plan_memory
from minicpm4.engine.options import AUTO, LoadOptions
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.sparse import choose_sparse
from minicpm4.errors import ConfigError
from minicpm4.executors import CacheSize, Executor, Preferences, backend, create_executor, resolve_options
from minicpm4.executors.base import BackendOptions, WeightLoader
from minicpm4.hardware import Choice, cache_folder
from minicpm4.model import PAGE_TOKENS, ModelConfig, PackedTensor
from minicpm4.model.config import SparseConfig
from minicpm4.model.long_context import with_context
from minicpm4.text import ChatTemplates, Tokenizer, load_gguf_tokenizer, load_tokenizer, templates_of_folder, templates_of_gguf

LoadProgress = Callable[[str, int, int], None]
MAX_STEP_TOKENS = 512


@dataclass(frozen=True)
class LoadedModel:
    """A model that can run. config: the checkpoint's, with more context where that was asked for and is known. sparse: the rule of
    its attention, None where all is dense. choices and warnings: sentences for the user."""

    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    templates: ChatTemplates | None
    default_params: SamplingParams
    limits: Limits
    sparse: SparseConfig | None
    memory: MemoryPlan
    executor: Executor
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...]


def load_model(options: LoadOptions, progress: LoadProgress | None = None) -> LoadedModel:
    """Finds, checks, plans and loads. progress: told (what, bytes done, bytes in all) while downloading and loading.

    Raises CheckpointError, ConfigError, CapacityError or UnsupportedError before any weight is read where that is possible.
    """
    capabilities = backend(options.executor).capabilities  # a wrong name is said before anything is downloaded
    download = None if progress is None else lambda done, total: progress("downloading", done, total)
    path = resolve(options.model, revision=options.revision, offline=options.offline, progress=download)
    with open_checkpoint(path) as checkpoint:
        plan = plan_load(options, checkpoint)
        config, memory = plan.config, plan.memory
        tokenizer, templates = read_text_side(checkpoint, options.space_prefix)
        params, warnings = default_params(checkpoint.generation)
        executor = create_executor(
            options.executor,
            config,
            watched_loader(checkpoint, progress),
            options=plan.executor,
            cache=plan.cache,
            formats=checkpoint.formats,
        )
    ends = end_tokens(config, tokenizer, generation=checkpoint.generation, templates=templates)
    limits = Limits(
        vocab_size=config.vocab_size,
        eos_ids=frozenset(ends),
        context_length=memory.context_length,
        num_pages=memory.num_pages,
        max_step_tokens=plan.cache.max_step_tokens,
        prefix_cache=options.prefix_cache,
        shares_pages=capabilities.cache == "pages",
    )
    return LoadedModel(
        name=checkpoint.name,
        config=config,
        tokenizer=tokenizer,
        templates=templates,
        default_params=params,
        limits=limits,
        sparse=plan.cache.sparse,
        memory=memory,
        executor=executor,
        choices=(*plan.choices, *rope_choices(checkpoint.config, config), *executor.choices, end_choice(ends, tokenizer)),
        warnings=(*checkpoint.warnings, *warnings, *executor.warnings),
    )


@dataclass(frozen=True)
class LoadPlan:
    """What a load will be. config: that runs, which may reach further than the checkpoint's where more context is asked for."""

    config: ModelConfig
    executor: BackendOptions
    cache: CacheSize
    memory: MemoryPlan
    choices: tuple[Choice, ...]


def plan_load(options: LoadOptions, checkpoint: Checkpoint) -> LoadPlan:
    """Resolves what is "auto", and plans the memory; see `plan_memory` for errors."""
    config = with_context(checkpoint.config, options.context_length)
    preferences = preferences_of(options, tile_cache=tile_cache_of(checkpoint) if options.tile_cache else None)
    resolved, choices = resolve_options(options.executor, preferences, config, formats=checkpoint.formats)
    longest = options.context_length or config.context_length  # a plan that fits less, and is dense for that, takes no more
    sparse, _ = choose_sparse(options.sparse_overrides, config, context_length=longest)
    memory = plan_memory(
        checkpoint,
        config,
        executor=options.executor,
        options=resolved,
        context_length=options.context_length,
        cache_tokens=options.cache_tokens,
        sparse=sparse,
    )
    cache, attention = size_cache(options, config, context_length=memory.context_length, num_pages=memory.num_pages)
    return LoadPlan(config, resolved, cache, memory, (executor_choice(options), *choices, *attention))


def size_cache(options: LoadOptions, config: ModelConfig, *, context_length: int, num_pages: int) -> tuple[CacheSize, tuple[Choice, ...]]:
    """What the executor makes room for, and what was chosen of attention."""
    sparse, attention = choose_sparse(options.sparse_overrides, config, context_length=context_length)
    max_step_tokens = min(MAX_STEP_TOKENS, num_pages * PAGE_TOKENS)  # every row has a place in the cache
    return CacheSize(context_length, num_pages, max_step_tokens, sparse), attention


def preferences_of(options: LoadOptions, *, tile_cache: Path | None = None) -> Preferences:
    """What the options ask of the executor; "auto" asks for nothing."""
    names = ("activations", "prompt_activations", "kv_format", "dtype")
    asked = {name: None if getattr(options, name) == AUTO else getattr(options, name) for name in names}
    return Preferences(threads=options.threads, isa=options.isa, device=options.device, tile_cache=tile_cache, **asked)


def executor_choice(options: LoadOptions) -> Choice:
    return Choice("executor", options.executor, "the default on a CPU" if options.executor == LoadOptions.executor else "asked for")


def tile_cache_of(checkpoint: Checkpoint) -> Path:
    """Where the packed weights of these very files are kept. The folder may be deleted at any time."""
    return cache_folder() / "packed" / f"{fingerprint(checkpoint)}.bin"


def rope_choices(published: ModelConfig, config: ModelConfig) -> tuple[Choice, ...]:
    """What was done to reach further than the published config."""
    if config.rope == published.rope:
        return ()
    return (
        Choice(
            "rope", f"long, for {config.context_length} tokens", f"more than the {published.context_length} of the config were asked for"
        ),
    )


def read_text_side(checkpoint: Checkpoint, space_prefix: bool | None) -> tuple[Tokenizer, ChatTemplates | None]:
    vocab_size = checkpoint.config.vocab_size
    if checkpoint.metadata is not None:
        tokenizer = load_gguf_tokenizer(checkpoint.metadata, vocab_size=vocab_size, space_prefix=space_prefix)
        return tokenizer, templates_of_gguf(checkpoint.metadata)
    if space_prefix is not None:
        raise ConfigError("space_prefix was given, but the tokenizer is not a GGUF file's", hint="leave it out")
    assert checkpoint.folder is not None, "a checkpoint has a folder or metadata"
    return load_tokenizer(checkpoint.folder, vocab_size=vocab_size), templates_of_folder(checkpoint.folder)


def watched_loader(checkpoint: Checkpoint, progress: LoadProgress | None) -> WeightLoader:
    """checkpoint.load that tells how far it is, and gives the file's memory back as it goes: before each tensor, since the system may map
    two megabytes where one of a few kilobytes was read."""
    total = sum(info.nbytes for info in checkpoint.tensors.values())
    done = 0

    def load(name: str) -> PackedTensor:
        nonlocal done
        checkpoint.release()  # the executor has copied what it got before
        tensor = checkpoint.load(name)
        done += tensor.nbytes
        if progress is not None:
            progress("loading", done, total)
        return tensor

    return load
