"""Whether attention is sparse, by what rule, and why: from what the user asks for and the model is made for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from minicpm4.errors import ConfigError
from minicpm4.hardware import Choice
from minicpm4.model import ModelConfig
from minicpm4.model.config import SparseConfig


@dataclass(frozen=True, kw_only=True)
class SparseOverrides:
    """is_on: True or False where it was asked for, None for what the model is made for. The others change the model's rule, None
    leaves it: topk, window_size, dense_len, has_coarse_lse (see `SparseConfig`)."""

    is_on: bool | None = None
    topk: int | None = None
    window_size: int | None = None
    dense_len: int | None = None
    has_coarse_lse: bool | None = None

    @property
    def changes(self) -> dict[str, int | bool]:
        """The fields of a SparseConfig that were asked for."""
        return {name: value for name, value in vars(self).items() if name != "is_on" and value is not None}


def choose_sparse(
    overrides: SparseOverrides, config: ModelConfig, *, context_length: int
) -> tuple[SparseConfig | None, tuple[Choice, ...]]:
    """The rule, None where all attention is dense, and the choice that was made; none for a model that knows dense attention alone.

    ConfigError for overrides that contradict each other.
    """
    is_asked = overrides.is_on is True or (overrides.is_on is None and config.sparse is not None and bool(overrides.changes))
    if overrides.changes and not is_asked:
        hint = "leave out the one or the other" if overrides.is_on is False else "this model is not made for sparse attention; add --sparse"
        raise ConfigError(f"{', '.join(overrides.changes)} of sparse attention was asked for, but attention is dense", hint=hint)
    if config.sparse is None and not is_asked:
        return None, ()
    rule = replace(config.sparse or SparseConfig(), **overrides.changes)  # type: ignore[arg-type]
    if overrides.is_on is False:
        return None, (Choice("attention", "dense", "asked for"),)
    if context_length <= rule.dense_len:
        return None, (
            Choice("attention", "dense", f"no sequence is longer than {rule.dense_len} tokens, from where on it could be sparse"),
        )
    value = f"sparse beyond {max(0, rule.dense_len)} tokens, {rule.max_blocks} blocks of {rule.block_size} a token"
    return rule, (Choice("attention", value, "asked for" if is_asked else "the model is made for it"),)
