"""What a checkpoint's own generation_config.json says of sampling, as SamplingParams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minicpm4.engine.params import SamplingParams
from minicpm4.errors import RequestError

NAMES = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "repetition_penalty"}
ELSEWHERE = frozenset(  # read by others, or without a meaning for one answer
    (
        "do_sample", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "max_length", "max_new_tokens", "use_cache",
        "_from_model_config", "cache_implementation",
    )
)  # fmt: skip


def default_params(generation: Mapping[str, object]) -> tuple[SamplingParams, tuple[str, ...]]:
    """The model's own defaults, and warnings: keys that are not understood, values that cannot be.

    Greedy unless do_sample is true, as for the libraries that write the file.
    """
    warnings = [f"generation_config.json: ignored key {key}" for key in sorted(generation.keys() - NAMES.keys() - ELSEWHERE)]
    values: dict[str, Any] = {NAMES[key]: value for key, value in generation.items() if key in NAMES and value is not None}
    if generation.get("do_sample") is not True:
        values["temperature"] = 0.0
    else:
        values.setdefault("temperature", 1.0)
    try:
        return SamplingParams(**values), tuple(warnings)
    except RequestError as error:
        return SamplingParams(), (*warnings, f"generation_config.json: {error.message}; its defaults are not used")
