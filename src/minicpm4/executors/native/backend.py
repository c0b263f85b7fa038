"""The native executor before it is loaded: what it can do, how its options are resolved, what memory it takes."""

from __future__ import annotations

from collections.abc import Iterable

from minicpm4 import _native
from minicpm4.executors.backend import Preferences, choose_threads
from minicpm4.executors.base import AS_CACHE, HALF_CACHE, CacheSize, Capabilities, WeightLoader, asked_or
from minicpm4.executors.cpu_kernels import USABLE_ISAS, weight_bytes
from minicpm4.executors.native.executor import NativeExecutor
from minicpm4.executors.native.options import CODE_BYTES, NativeOptions, choose_activations, choose_prompt_activations
from minicpm4.hardware import Choice, available_memory
from minicpm4.model import ModelConfig
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import KV_FORMATS


class NativeBackend:
    """See `executors.backend.Backend`."""

    name = "native"
    options = NativeOptions
    capabilities = Capabilities(
        weight_formats=frozenset(STORAGE_FORMATS),
        kv_formats=frozenset(KV_FORMATS),
        activations=frozenset(CODE_BYTES),
        isas=frozenset((None, *USABLE_ISAS)),
        bf16_isas=frozenset(isa for isa in (None, *USABLE_ISAS) if _native.has_bf16_matrices(isa or USABLE_ISAS[0])),
        compressed_format=AS_CACHE,
    )

    def resolve(
        self, preferences: Preferences, config: ModelConfig, formats: Iterable[str] | None
    ) -> tuple[NativeOptions, tuple[Choice, ...]]:
        """See `Backend.resolve`, and the functions below for each choice."""
        threads = choose_threads(preferences)
        activations = choose_activations(preferences, config, formats)
        can_be_bf16 = preferences.isa in self.capabilities.bf16_isas
        prompts = choose_prompt_activations(preferences, activations.value, config=config, formats=formats, can_be_bf16=can_be_bf16)
        has_codes = activations.value == "int8"
        kv_format = asked_or(
            preferences.kv_format, Choice("kv cache", "int8", "eight bits, as activations have") if has_codes else HALF_CACHE
        )
        options = NativeOptions(
            kv_format=kv_format.value,
            device=preferences.device or "cpu",
            threads=int(threads.value),
            isa=preferences.isa,
            activations=activations.value,
            prompt_activations=prompts.value,
            tile_cache=preferences.tile_cache,
        )
        return options, (threads, activations, prompts, kv_format)

    def weight_bytes(self, format_name: str, shape: tuple[int, ...], options: NativeOptions) -> int:
        return weight_bytes(format_name, shape)

    def free_memory(self, options: NativeOptions) -> int | None:
        return available_memory()

    def create(self, config: ModelConfig, weights: WeightLoader, *, options: NativeOptions, cache: CacheSize) -> NativeExecutor:
        return NativeExecutor(config, weights, options=options, cache=cache)


BACKEND = NativeBackend()
