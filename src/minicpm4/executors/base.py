"""What every executor offers, and how one is chosen. Knows no framework: each executor's folder is imported when asked for."""

# R wanted rows, V vocabulary

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from minicpm4.errors import CapacityError, CheckpointError, ConfigError, UnsupportedError
from minicpm4.hardware import Choice
from minicpm4.model import ModelConfig, PackedTensor, Step
from minicpm4.model.config import SparseConfig
from minicpm4.model.parameters import parameter_shapes
from minicpm4.model.sparse import COARSE
from minicpm4.model.sparse_step import places_per_page
from minicpm4.quant import head_bytes

AS_CACHE = "as the cache"  # of Capabilities.kernel_format
EXECUTORS = ("native", "reference", "torch", "mindspore")
INSTALL_HINTS = {
    "native": "build this package again: make chat, or pip install -e . in its checkout",
    "reference": "install this package again with its dependencies: pip install -e . in its checkout",
    "torch": "pip install 'minicpm4[torch]'",
    "mindspore": "pip install 'minicpm4[mindspore]' in an environment of its own, with Python 3.11 or 3.12: it needs numpy 1.x",
}


@dataclass(frozen=True)
class ExecutorOptions:
    """What an executor is made for. Every field is concrete; "auto" was resolved before. ConfigError for sizes that cannot be.

    context_length: the most tokens that one sequence may hold. num_pages: pages of the KV cache, shared by all sequences.
    max_step_tokens: the most rows of one step. kv_format: how keys and values are stored, one of quant.KV_FORMATS.
    threads: CPU threads. isa: instruction set (native only). activations: "int8", "int16" or "f32", what quantized weights
    are multiplied with. prompt_activations: "same", or "bf16", where rows of a prompt and weights of layers, but float32 ones, are rounded
    to bfloat16 (reference; native, where the instruction set has such products). device: "cpu", "cuda" (torch only) or "ascend" (mindspore
    only). repack_file: where the packed weights are kept between loads (native only); None for nowhere.
    sparse: the rule by which rows attend to some blocks only (`model.sparse`); None where all attention is dense.
    """

    context_length: int
    num_pages: int
    max_step_tokens: int = 512
    kv_format: str = "f16"
    threads: int = 1
    isa: str | None = None
    activations: str = "f32"
    prompt_activations: str = "same"
    device: str = "cpu"
    repack_file: Path | None = None
    sparse: SparseConfig | None = None

    def __post_init__(self) -> None:
        for name in ("context_length", "num_pages", "max_step_tokens", "threads"):
            if not 1 <= getattr(self, name) < 1 << 31:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a positive number", hint="raise it, or leave it out")


@dataclass(frozen=True)
class Capabilities:
    """What an executor can do; asking for more is an UnsupportedError, raised by `check`.

    bf16_isas: the instruction sets with which prompts may be in bfloat16. kernel_format: how it keeps compressed keys beside their
    pages, one of quant.KV_FORMATS or AS_CACHE; None where it makes them anew, or not at all.
    """

    weight_formats: frozenset[str]
    kv_formats: frozenset[str]
    activations: frozenset[str]
    devices: frozenset[str]
    isas: frozenset[str | None] = frozenset((None,))
    bf16_isas: frozenset[str | None] = frozenset()
    keeps_packed: bool = False
    kernel_format: str | None = None

    def check(self, name: str, weight_formats: Iterable[str], options: ExecutorOptions) -> None:
        asked: list[tuple[str, Set[str | None], Set[str | None]]] = [
            ("weight formats", set(weight_formats), self.weight_formats),
            ("KV formats", {options.kv_format}, self.kv_formats),
            ("activations", {options.activations}, self.activations),
            ("prompt activations", {options.prompt_activations}, {"same", *(["bf16"] if options.isa in self.bf16_isas else [])}),
            ("devices", {options.device}, self.devices),
            ("instruction sets", {options.isa}, self.isas),
            ("files of packed weights", {"yes"} if options.repack_file else set(), {"yes"} if self.keeps_packed else set()),
        ]
        for what, wanted, offered in asked:
            if wanted - offered:
                listed = ", ".join(sorted(value for value in offered if value is not None))
                remedy = f"it offers {listed}" if listed else "none can be chosen"
                raise UnsupportedError(
                    f"executor {name} cannot do {what}: {', '.join(sorted(str(w) for w in wanted - offered))}",
                    hint=f"{remedy}; or choose another executor of {', '.join(EXECUTORS)}",
                )


@dataclass(frozen=True)
class Peaks:
    """The largest of each `width` consecutive logits of a row; NaN where one of them is NaN. values: float32 [R, blocks] or [blocks]."""

    width: int
    values: np.ndarray

    def __getitem__(self, row: int) -> Peaks:
        return Peaks(self.width, self.values[row])


class Executor(Protocol):
    """Runs steps of one model on one device. Owns the weights in its own form and the KV cache's storage; keeps no request state.

    choices: what was decided at load, with reasons. warnings: sentences for the user. weight_bytes: bytes that decoding one token reads.
    peaks: of the logits that the newest run gave, valid as long as they are; None where the executor does not make them.
    """

    name: str
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...]
    weight_bytes: int
    kv_bytes: int
    peaks: Peaks | None

    def run(self, step: Step) -> np.ndarray:
        """Logits, float32 [R, V], owned by the caller until the next call."""

    def copy_pages(self, sources: np.ndarray, targets: np.ndarray) -> None:
        """Page targets[i] becomes what page sources[i] is: keys, values and compressed keys of all layers. int32, no target twice or
        a source of another copy; done when this returns."""

    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None:
        """Fills pages with unit-normal keys and values, for measuring at a depth without computing it."""

    def close(self) -> None:
        """Frees weights, cache and threads; the executor cannot be used after."""


WeightLoader = Callable[[str], PackedTensor]


def create_executor(name: str, config: ModelConfig, weights: WeightLoader, *, options: ExecutorOptions, formats: Iterable[str]) -> Executor:
    """The executor of that name with its weights loaded.

    weights: gives a parameter by its name; called once for each. formats: the storage formats that it will give.
    Raises ConfigError for an unknown name, UnsupportedError where the executor cannot do what is asked or is not installed,
    CheckpointError for a parameter whose shape is not the config's, CapacityError where memory runs out.
    """
    module = executor_module(name)
    module.CAPABILITIES.check(name, formats, options)
    try:
        executor: Executor = module.create(config, with_checked_shapes(config, weights), options)
    except MemoryError as error:
        raise CapacityError(
            f"executor {name} cannot get the memory for the weights and {options.num_pages} pages of cache: {error!s:.200}",
            hint="lower the context (-c) or the cache, free memory, or choose a smaller model or format",
        ) from error
    return executor


def with_checked_shapes(config: ModelConfig, weights: WeightLoader) -> WeightLoader:
    """The same loader, which refuses a parameter of another shape: executors believe shapes, and native ones would read past the end."""
    shapes = parameter_shapes(config)

    def load(name: str) -> PackedTensor:
        tensor = weights(name)
        if tensor.shape != shapes[name]:
            raise CheckpointError(
                f"{name} has shape {tensor.shape}, the config asks for {shapes[name]}",
                hint="check that the config belongs to these weights",
            )
        return tensor

    return load


def capabilities_of(name: str) -> Capabilities:
    """What the executor of that name can do; the same errors as `create_executor`."""
    capabilities: Capabilities = executor_module(name).CAPABILITIES
    return capabilities


def executor_module(name: str) -> ModuleType:
    """The executor's package. Each has CAPABILITIES, create(config, weights, options) -> Executor, and for planning
    weight_bytes(format_name, shape) -> int, what a weight takes once loaded, and free_memory(device) -> int | None.

    ConfigError for an unknown name, UnsupportedError where it cannot be imported.
    """
    if name not in EXECUTORS:
        raise ConfigError(f"there is no executor {name!r}", hint=f"choose one of {', '.join(EXECUTORS)}")
    try:
        return importlib.import_module(f"minicpm4.executors.{name}")
    except ImportError as error:
        raise UnsupportedError(f"executor {name} cannot be loaded: {error}", hint=INSTALL_HINTS[name]) from error


def kv_bytes_per_token(config: ModelConfig, kv_format: str) -> int:
    """Bytes that a token's keys and values take in all layers."""
    return 2 * config.num_layers * config.num_kv_heads * head_bytes(kv_format, config.head_dim)


def kernel_bytes_per_page(config: ModelConfig, sparse: SparseConfig | None, *, executor: str, kv_format: str) -> int:
    """Bytes that the compressed keys beside a page take in all layers; 0 where none are kept. kv_format: of the cache."""
    kernel_format = capabilities_of(executor).kernel_format
    if sparse is None or kernel_format is None:
        return 0
    kernel_format = kv_format if kernel_format == AS_CACHE else kernel_format
    places = places_per_page(sparse) + (places_per_page(sparse, times=COARSE) if sparse.has_coarse_lse else 0)
    return places * config.num_layers * config.num_kv_heads * head_bytes(kernel_format, config.head_dim)
