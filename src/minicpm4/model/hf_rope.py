"""The rotary embedding of a config.json: `rope_theta`, `rope_scaling` or `rope_parameters`, as a divisor for each frequency.

Rules of the `transformers` library; MiniCPM's LongRoPE is that of its own published code.
"""

from __future__ import annotations

import math
from typing import Any

from minicpm4.errors import ConfigError
from minicpm4.model.config import KeyReader, RopeConfig, require

KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


def rope_from_hf(keys: KeyReader, warnings: list[str], *, head_dim: int, context: int, is_minicpm: bool) -> RopeConfig:
    """context: max_position_embeddings. `rope_scaling` goes before `rope_parameters`, which may hold rope_theta too."""
    require(0 < context < 1 << 31, "max_position_embeddings", context, "a positive whole number")
    parameters = keys.get("rope_parameters", dict)
    theta, block = keys.get("rope_theta", float, 10000.0), keys.get("rope_scaling", dict) or parameters or {}
    if any(isinstance(value, dict) for value in block.values()):
        raise ConfigError("config.json: rope parameters of their own for kinds of layers are not supported", hint="one for all is")
    scaling = KeyReader(block, "config.json rope_scaling")
    theta = scaling.get("rope_theta", float, theta)
    require(theta > 0 and head_dim <= 1 << 16, "rope theta, head_dim", (theta, head_dim), "positive, and at most 65536")
    share = scaling.get("partial_rotary_factor", float, keys.get("partial_rotary_factor", float, 1.0))
    require(share == 1, "partial_rotary_factor", share, "1: heads are turned as a whole")
    outer = keys.get("original_max_position_embeddings", int)
    inner = scaling.get("original_max_position_embeddings", int)
    first, second = (inner, outer) if is_minicpm else (outer, inner)  # transformers believes the outer one
    original = context if first is second is None else second if first is None else first
    rope = scaled_rope(scaling, theta, head_dim=head_dim, context=context, original=original, is_minicpm=is_minicpm)
    if scaling.unread():
        warnings.append(f"config.json: ignored rope_scaling keys {', '.join(scaling.unread())}")
    return rope


def scaled_rope(scaling: KeyReader, theta: float, *, head_dim: int, context: int, original: int, is_minicpm: bool) -> RopeConfig:
    """original: the context trained first."""
    kind = scaling.get("rope_type", str, scaling.get("type", str, "default"))
    if kind == "default":
        return RopeConfig(theta)
    if kind == "dynamic":  # changes frequencies past max_position_embeddings alone, which no context of ours is
        scaling.get("factor", float)
        return RopeConfig(theta)
    if kind == "linear":
        factors = (scaling.need("factor", float),) * (head_dim // 2)
        return RopeConfig(theta, factors, factors)
    if kind == "yarn":
        return yarn_rope(scaling, theta, head_dim=head_dim, context=context, original=original)
    if kind == "llama3":
        factors = llama3_factors(scaling, theta, head_dim, original=original)
        return RopeConfig(theta, factors, factors)
    if kind == "longrope":
        require(original > 1, "original_max_position_embeddings", original, "more than 1")
        factor = scaling.get("factor", float)
        stretch = max(1.0, context / original if is_minicpm or factor is None else factor)
        magnitude = scaling.get("attention_factor", float, math.sqrt(1 + math.log(stretch) / math.log(original)))
        short, long = (factor_list(scaling.need(name, list)) for name in ("short_factor", "long_factor"))
        return RopeConfig(theta, short, long, original, magnitude, follows_context=not is_minicpm)
    raise ConfigError(f"config.json: rope type {kind!r:.80} is not supported", hint=f"supported: {', '.join(KINDS)}")


def factor_list(values: list[Any]) -> tuple[float, ...]:
    require(all(isinstance(v, int | float) and not isinstance(v, bool) for v in values), "rope factors", values, "numbers")
    return tuple(float(v) for v in values)


def yarn_rope(scaling: KeyReader, theta: float, *, head_dim: int, context: int, original: int) -> RopeConfig:
    """YaRN (arXiv 2309.00071): frequencies that turn often stay, those that turn seldom are divided, a ramp lies between."""
    factor = scaling.get("factor", float, context / original)
    fast, slow = scaling.get("beta_fast", float) or 32.0, scaling.get("beta_slow", float) or 1.0
    numbers = (factor, fast, slow, original)
    require(min(numbers) > 0 and theta != 1, "yarn rope scaling", numbers, "positive numbers")
    magnitude = scaling.get("attention_factor", float, yarn_magnitude(scaling, factor))
    truncates = scaling.get("truncate", bool, True)
    factors = yarn_factors(theta, head_dim, factor=factor, turns=(fast, slow), original=original, truncates=truncates)
    return RopeConfig(theta, factors, factors, magnitude=magnitude)


def yarn_magnitude(scaling: KeyReader, factor: float) -> float:
    """0.1 ln(factor) + 1, or the ratio of two such numbers whose logarithms are scaled."""
    scale, scale_all = scaling.get("mscale", float), scaling.get("mscale_all_dim", float)

    def grown(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    return grown(scale) / grown(scale_all) if scale and scale_all else grown(1.0)


def yarn_factors(
    theta: float, head_dim: int, *, factor: float, turns: tuple[float, float], original: int, truncates: bool = True
) -> tuple[float, ...]:
    """turns: how often the last frequency that stays, and the first that is divided in full, turn within the original context."""
    low, high = (head_dim * math.log(original / (count * 2 * math.pi)) / (2 * math.log(theta)) for count in turns)
    low, high = (math.floor(low), math.ceil(high)) if truncates else (low, high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 if low == high else 0
    blends = (min(1.0, max(0.0, (index - low) / (high - low))) for index in range(head_dim // 2))  # 0 keeps the frequency
    return tuple(1 / (blend / factor + 1 - blend) for blend in blends)


def llama3_factors(scaling: KeyReader, theta: float, head_dim: int, *, original: int) -> tuple[float, ...]:
    """Divisors of Llama 3.1's scaling: long wavelengths by `factor`, short ones by 1, a ramp between (Meta's published rule)."""
    factor, low, high = scaling.need("factor", float), scaling.need("low_freq_factor", float), scaling.need("high_freq_factor", float)
    require(
        factor > 0 and high > low > 0, "llama3 rope scaling", (factor, low, high), "factor > 0 and high_freq_factor > low_freq_factor > 0"
    )
    factors = []
    for i in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * i / head_dim)
        blend = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))  # 1 keeps the frequency, 0 divides it
        factors.append(1 / ((1 - blend) / factor + blend))
    return tuple(factors)
