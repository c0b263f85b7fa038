"""How an executor comes about: each one's package gives a `Backend`, which resolves what was asked for, plans memory and loads weights."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from minicpm4.errors import CapacityError, CheckpointError, ConfigError, UnsupportedError
from minicpm4.executors.base import AS_CACHE, EXECUTORS, BackendOptions, CacheSize, Capabilities, Executor, WeightLoader
from minicpm4.hardware import Choice, num_cores
from minicpm4.model import ModelConfig, PackedTensor
from minicpm4.model.config import SparseConfig
from minicpm4.model.parameters import parameter_shapes
from minicpm4.model.sparse import COARSE
from minicpm4.model.sparse_step import places_per_page
from minicpm4.quant import head_bytes

INSTALL_HINTS = {
    "native": "build this package again: make chat, or pip install -e . in its checkout",
    "reference": "install this package again with its dependencies: pip install -e . in its checkout",
    "torch": "pip install 'minicpm4[torch]'",
    "mindspore": "pip install 'minicpm4[mindspore]' in an environment of its own, with Python 3.11 or 3.12: it needs numpy 1.x",
}


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """What a user asks of any executor, None where it is left to the executor. Names are those of the executors' options."""

    threads: int | None = None
    isa: str | None = None
    activations: str | None = None
    prompt_activations: str | None = None
    kv_format: str | None = None
    device: str | None = None
    dtype: str | None = None
    tile_cache: Path | None = None

    @property
    def given(self) -> dict[str, Any]:
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


def choose_threads(preferences: Preferences) -> Choice:
    """How many CPU threads, as text."""
    asked = preferences.threads
    return Choice("threads", str(num_cores()), "one a core") if asked is None else Choice("threads", str(asked), "asked for")


class Backend(Protocol):
    """An executor before it is loaded. name: see `EXECUTORS`. options: the type of its options."""

    name: str
    options: type[BackendOptions]
    capabilities: Capabilities

    def resolve(
        self, preferences: Preferences, config: ModelConfig, formats: Iterable[str] | None
    ) -> tuple[BackendOptions, tuple[Choice, ...]]:
        """Its options, all concrete, and what was chosen with reasons. formats: of the weights; None where some are taken to be quantized.

        Preferences that are no fields of its options were refused before (`resolve_options`)."""

    def weight_bytes(self, format_name: str, shape: tuple[int, ...], options: Any) -> int:
        """What a weight takes once loaded."""

    def free_memory(self, options: Any) -> int | None:
        """Bytes that can be allocated on the device; None where nobody says. UnsupportedError for a device that there is not."""

    def create(self, config: ModelConfig, weights: WeightLoader, *, options: Any, cache: CacheSize) -> Executor:
        """Loads the weights. MemoryError where memory runs out."""


def backend(name: str) -> Backend:
    """ConfigError for an unknown name, UnsupportedError where it cannot be imported."""
    if name not in EXECUTORS:
        raise ConfigError(f"there is no executor {name!r}", hint=f"choose one of {', '.join(EXECUTORS)}")
    try:
        found: Backend = importlib.import_module(f"minicpm4.executors.{name}").BACKEND
    except ImportError as error:
        raise UnsupportedError(f"executor {name} cannot be loaded: {error}", hint=INSTALL_HINTS[name]) from error
    return found


def resolve_options(
    name: str, preferences: Preferences, config: ModelConfig, *, formats: Iterable[str] | None = None
) -> tuple[BackendOptions, tuple[Choice, ...]]:
    """The options of the executor of that name, all concrete, and what was chosen with reasons.

    UnsupportedError for a preference that it has no option for, or cannot fulfil.
    """
    found = backend(name)
    own = {field.name for field in fields(found.options)}
    for preference, value in preferences.given.items():
        if preference not in own:
            flag = "--" + preference.replace("_", "-")
            raise UnsupportedError(
                f"executor {name} has no {preference} to set to {value}", hint=f"leave out {flag}, or choose another executor"
            )
    options, choices = found.resolve(preferences, config, formats)
    found.capabilities.check(name, formats or (), options)
    return options, choices


def create_executor(
    name: str, config: ModelConfig, weights: WeightLoader, *, options: BackendOptions, cache: CacheSize, formats: Iterable[str]
) -> Executor:
    """The executor of that name with its weights loaded.

    weights: gives a parameter by its name; called once for each. formats: the storage formats that it will give.
    Raises ConfigError for an unknown name, UnsupportedError where the executor cannot do what is asked or is not installed,
    CheckpointError for a parameter whose shape is not the config's, CapacityError where memory runs out.
    """
    found = backend(name)
    found.capabilities.check(name, formats, options)
    try:
        return found.create(config, with_checked_shapes(config, weights), options=options, cache=cache)
    except MemoryError as error:
        raise CapacityError(
            f"executor {name} cannot get the memory for the weights and {cache.num_pages} pages of cache: {error!s:.200}",
            hint="lower the context (-c) or the cache, free memory, or choose a smaller model or format",
        ) from error


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


def kv_bytes_per_token(config: ModelConfig, kv_format: str) -> int:
    """Bytes that a token's keys and values take in all layers."""
    return 2 * config.num_layers * config.num_kv_heads * head_bytes(kv_format, config.head_dim)


def compressed_bytes_per_page(config: ModelConfig, sparse: SparseConfig | None, *, executor: str, kv_format: str) -> int:
    """Bytes that the compressed keys beside a page take in all layers; 0 where none are kept. kv_format: of the cache."""
    kept_in = backend(executor).capabilities.compressed_format
    if sparse is None or kept_in is None:
        return 0
    kept_in = kv_format if kept_in == AS_CACHE else kept_in
    places = places_per_page(sparse) + (places_per_page(sparse, times=COARSE) if sparse.has_coarse_lse else 0)
    return places * config.num_layers * config.num_kv_heads * head_bytes(kept_in, config.head_dim)
