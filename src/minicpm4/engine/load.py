"""From a model's name to everything that answering takes: its files found, its memory planned, its weights in an executor.

"auto" is resolved here, with reasons; what comes out is concrete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from minicpm4.checkpoint import Checkpoint, open_checkpoint, resolve
from minicpm4.checkpoint.fingerprint import fingerprint
from minicpm4.engine.defaults import default_params
from minicpm4.engine.ends import end_choice, end_tokens
from minicpm4.engine.engine import Limits
from minicpm4.engine.memory import MemoryPlan, plan_memory
from minicpm4.engine.params import SamplingParams, check_number
from minicpm4.engine.sparse import SparseWishes, choose_sparse
from minicpm4.errors import ConfigError
from minicpm4.executors import Executor, ExecutorOptions, WeightLoader, capabilities_of, create_executor
from minicpm4.hardware import Choice, cache_folder, num_cores
from minicpm4.model import PAGE_TOKENS, STORAGE_FORMATS, ModelConfig, PackedTensor
from minicpm4.model.config import SIZE_LIMIT, SparseConfig
from minicpm4.model.long_context import with_context
from minicpm4.quant import KV_FORMATS
from minicpm4.text import ChatTemplates, Tokenizer, load_gguf_tokenizer, load_tokenizer, templates_of_folder, templates_of_gguf

LoadProgress = Callable[[str, int, int], None]
AUTO = "auto"
PROMPT_ACTIVATIONS = ("same", "bf16")
MAX_STEP_TOKENS = 512
WHOLE_NUMBERS = {  # of the options, with the least and the most
    "context_length": (1, 1 << 31), "cache_tokens": (1, 1 << 40), "threads": (1, 1024), "topk": (1, SIZE_LIMIT - 1),
    "window": (1, SIZE_LIMIT - 1), "dense_len": (-1, 1 << 31),
}  # fmt: skip
SMALL_HIDDEN_SIZE = 1024  # of models whose activations are kept in sixteen bits


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """model: a folder, a .gguf file, a hub id, or "default"; revision: of a hub id. offline: never the network.

    executor: "native", "reference", "torch" or "mindspore". context_length: the most tokens of a sequence; None for the model's own, or
    what fits the memory. cache_tokens: tokens that all sequences together may hold; None for one context. threads: None for
    one a core. isa: instruction set of the native executor, None for the best. activations: what quantized weights are
    multiplied with: "int8", "int16", "f32", or "auto" (see `choose_activations`). prompt_activations: what weights are multiplied with in
    the rows of prompts: "same", "bf16", or "auto" (see `choose_prompt_activations`). kv_format: how keys and values are
    stored: "f16", "bf16", "f32", "int8" (half the memory of f16; not in torch), or "auto" (see `choose_kv_format`).
    device: "cpu", "cuda" (torch) or "ascend" (mindspore).
    space_prefix: whether a GGUF file's SentencePiece tokenizer puts a space before each piece of text, as llama.cpp does; None
    for what the file says. repack_cache: whether the native executor keeps the weights as it has packed them in the cache folder, and
    reads them from there the next time (see `repack_file`); nothing is ever deleted there.
    sparse: whether attention is sparse past dense_len (InfLLM v2); None for what the model is made for.
    topk, window, dense_len, coarse_lse: changes to the rule (see `SparseConfig`); None for the model's own.
    prefix_cache: whether what was computed of a text is kept for others that begin alike, as long as nobody needs the memory.
    """

    model: str = "default"
    revision: str | None = None
    offline: bool = False
    executor: str = "native"
    context_length: int | None = None
    cache_tokens: int | None = None
    threads: int | None = None
    isa: str | None = None
    activations: str = AUTO
    prompt_activations: str = AUTO
    kv_format: str = AUTO
    device: str = "cpu"
    space_prefix: bool | None = None
    repack_cache: bool = False
    sparse: bool | None = None
    topk: int | None = None
    window: int | None = None
    dense_len: int | None = None
    coarse_lse: bool | None = None
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.model, str):
            raise ConfigError(f"model is {self.model!r:.80}, expected text or a path", hint="name a folder, a file or a hub id")
        for name, within in WHOLE_NUMBERS.items():
            check_number(name, getattr(self, name), within, is_whole=True, is_optional=True, error=ConfigError)
        if self.kv_format not in (AUTO, *KV_FORMATS):
            raise ConfigError(f"there is no KV format {self.kv_format!r:.40}", hint=f"choose one of {', '.join((AUTO, *KV_FORMATS))}")
        if self.prompt_activations not in (AUTO, *PROMPT_ACTIVATIONS):
            raise ConfigError(
                f"there are no prompt activations {self.prompt_activations!r:.40}",
                hint=f"choose one of {', '.join((AUTO, *PROMPT_ACTIVATIONS))}",
            )

    @property
    def sparse_wishes(self) -> SparseWishes:
        return SparseWishes(
            is_on=self.sparse, topk=self.topk, window_size=self.window, dense_len=self.dense_len, has_coarse_lse=self.coarse_lse
        )


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
    capabilities_of(options.executor)  # a wrong name is said before anything is downloaded
    download = None if progress is None else lambda done, total: progress("downloading", done, total)
    path = resolve(options.model, revision=options.revision, offline=options.offline, progress=download)
    with open_checkpoint(path) as checkpoint:
        config, memory = plan_load(options, checkpoint)
        executor_options, choices = resolve_options(
            options,
            config,
            context_length=memory.context_length,
            num_pages=memory.num_pages,
            formats=checkpoint.formats,
        )
        executor_options = replace(executor_options, repack_file=repack_file(checkpoint, options))
        tokenizer, templates = read_text_side(checkpoint, options.space_prefix)
        params, warnings = default_params(checkpoint.generation)
        executor = create_executor(
            options.executor,
            config,
            watched_loader(checkpoint, progress),
            options=executor_options,
            formats=checkpoint.formats,
        )
    ends = end_tokens(config, tokenizer, generation=checkpoint.generation, templates=templates)
    limits = Limits(
        vocab_size=config.vocab_size,
        eos_ids=frozenset(ends),
        context_length=memory.context_length,
        num_pages=memory.num_pages,
        max_step_tokens=executor_options.max_step_tokens,
        prefix_cache=options.prefix_cache,
        tells_prompts=executor_options.prompt_activations != "same",
    )
    return LoadedModel(
        name=checkpoint.name,
        config=config,
        tokenizer=tokenizer,
        templates=templates,
        default_params=params,
        limits=limits,
        sparse=executor_options.sparse,
        memory=memory,
        executor=executor,
        choices=(*choices, *rope_choices(checkpoint.config, config), *executor.choices, end_choice(ends, tokenizer)),
        warnings=(*checkpoint.warnings, *warnings, *executor.warnings),
    )


def repack_file(checkpoint: Checkpoint, options: LoadOptions) -> Path | None:
    """Where the packed weights of these very files are kept, None where they are not to be. The folder may be deleted at any time."""
    return cache_folder() / "packed" / f"{fingerprint(checkpoint)}.bin" if options.repack_cache else None


def plan_load(options: LoadOptions, checkpoint: Checkpoint) -> tuple[ModelConfig, MemoryPlan]:
    """The config that runs, which may reach further than the checkpoint's where more context is asked for, and its memory plan."""
    config = with_context(checkpoint.config, options.context_length)
    longest = options.context_length or config.context_length  # a plan that fits less, and is dense for that, takes no more
    sparse, _ = choose_sparse(options.sparse_wishes, config, context_length=longest)
    return config, plan_memory(
        checkpoint,
        config,
        executor=options.executor,
        kv_format=choose_kv_format(options, config, checkpoint.formats).value,
        device=options.device,
        context_length=options.context_length,
        cache_tokens=options.cache_tokens,
        sparse=sparse,
    )


def rope_choices(published: ModelConfig, config: ModelConfig) -> tuple[Choice, ...]:
    """What was done to reach further than the published config."""
    if config.rope == published.rope:
        return ()
    return (
        Choice(
            "rope", f"long, for {config.context_length} tokens", f"more than the {published.context_length} of the config were asked for"
        ),
    )


def resolve_options(
    options: LoadOptions, config: ModelConfig, *, context_length: int, num_pages: int, formats: Iterable[str] | None = None
) -> tuple[ExecutorOptions, tuple[Choice, ...]]:
    """The executor's options, all concrete, and the choices that were made for it.

    formats: the storage formats of the weights; None where some are taken to be quantized.
    """
    threads = num_cores() if options.threads is None else options.threads
    activations, kv_format = choose_activations(options, config, formats), choose_kv_format(options, config, formats)
    prompt_activations = choose_prompt_activations(options, activations.value, config=config, formats=formats)
    sparse, attention = choose_sparse(options.sparse_wishes, config, context_length=context_length)
    resolved = ExecutorOptions(
        context_length=context_length,
        num_pages=num_pages,
        max_step_tokens=min(MAX_STEP_TOKENS, num_pages * PAGE_TOKENS),  # every row has a place in the cache
        kv_format=kv_format.value,
        threads=threads,
        isa=options.isa,
        activations=activations.value,
        prompt_activations=prompt_activations.value,
        device=options.device,
        sparse=sparse,
    )
    chosen = Choice("executor", options.executor, "the default on a CPU" if options.executor == LoadOptions.executor else "asked for")
    return resolved, (
        chosen,
        Choice("threads", str(threads), "one a core" if options.threads is None else "asked for"),
        activations,
        prompt_activations,
        kv_format,
        *attention,
    )


def choose_activations(options: LoadOptions, config: ModelConfig, formats: Iterable[str] | None) -> Choice:
    """What quantized weights are multiplied with.

    Eight bits cost a small model answers: they move SmolLM2-135M's logits by 0.1 to 1, which turns near-ties. Sixteen bits leave
    them where they were; decoding waits for memory and is as fast, prompts take 1.5 times as long, of which a small model needs
    little (docs/lab_notes.md).
    """
    what = "activations"
    if options.activations != AUTO:
        return Choice(what, options.activations, "asked for")
    if "int8" not in capabilities_of(options.executor).activations or options.executor == "reference":
        return Choice(what, "f32", "the executor computes in floats")
    if formats is not None and all(STORAGE_FORMATS[name].is_dense for name in formats):
        return Choice(what, "f32", "nothing is quantized")
    if config.hidden_size < SMALL_HIDDEN_SIZE:
        return Choice(what, "int16", "eight bits show in the answers of a model this small")
    return Choice(what, "int8", "fast, and exact enough for a model of this size")


def choose_prompt_activations(options: LoadOptions, activations: str, *, config: ModelConfig, formats: Iterable[str] | None) -> Choice:
    """What weights are multiplied with in the rows of prompts; activations: what quantized ones are in all others.

    bfloat16 is more exact than eight bits, and where the CPU has a unit for matrices of it faster, but for the shortest prompts. It is
    less exact than sixteen bits (docs/lab_notes.md), so that who needs these does not get it unasked. Weights in bfloat16 meet it
    too: it is what a model of such weights was trained with.
    """
    what = "prompt activations"
    if options.prompt_activations != AUTO:
        return Choice(what, options.prompt_activations, "asked for")
    has_bf16_weights = options.activations == AUTO and formats is not None and "bf16" in formats
    if activations == "f32" and not has_bf16_weights:
        return Choice(what, "same", "nothing is rounded")
    if options.executor == "reference" or options.isa not in capabilities_of(options.executor).bf16_isas:
        return Choice(what, "same", "no unit for matrices of bfloat16")
    if activations == "int16":
        return Choice(what, "same", "bfloat16 is less exact than sixteen bits")
    if activations == "f32" and config.hidden_size < SMALL_HIDDEN_SIZE:
        return Choice(what, "same", "bfloat16 shows in the answers of a model this small")
    if activations == "f32":
        return Choice(what, "bf16", "as the weights are, and faster on this CPU")
    return Choice(what, "bf16", "faster and more exact than eight bits on this CPU")


def choose_kv_format(options: LoadOptions, config: ModelConfig, formats: Iterable[str] | None) -> Choice:
    """How keys and values are stored: in eight bits where activations have eight, since both then meet as integers."""
    what = "kv cache"
    if options.kv_format != AUTO:
        return Choice(what, options.kv_format, "asked for")
    if choose_activations(options, config, formats).value == "int8" and "int8" in capabilities_of(options.executor).kv_formats:
        return Choice(what, "int8", "eight bits, as activations have")
    return Choice(what, "f16", "half of float32, and as exact as it need be")


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
