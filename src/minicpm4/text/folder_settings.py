"""What the small JSON files beside a tokenizer say: its added tokens, its special tokens by name, the template.

Follows the `transformers` library: tokenizer_config.json with `added_tokens_decoder` says it all; without that, special_tokens_map.json
goes before it, and added_tokens.json gives ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm4.errors import CheckpointError
from minicpm4.text.files import AGAIN, read_settings
from minicpm4.text.tokenizer import WholeToken

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA = ("extra_special_tokens", "additional_special_tokens")  # two names of one list; the older one is read where the newer is empty
MODEL_SPECIFIC = "model_specific_special_tokens"
NO_TOKENS = ("add_bos_token", "add_eos_token")  # end as names of tokens do, and are switches


@dataclass(frozen=True)
class NamedToken:
    """A token that the settings name as special. WholeToken's flags, but for the id, which the vocabulary knows."""

    text: str
    strips_left: bool = False
    strips_right: bool = False
    is_word: bool = False


@dataclass(frozen=True)
class FolderSettings:
    """added: tokens beside the vocabulary's own, with their ids. added_give_way: where the tokenizer itself adds one of the same id.
    special: those that the files name as special, by role or in lists.

    special_tokens: the texts of those with a role, by its name, such as bos_token. adds_bos: None where the files do not say.
    is_legacy: SentencePiece models put a space before every text between control tokens, not only before the first.
    template: as the file holds it, unchecked.
    """

    added: tuple[WholeToken, ...]
    added_give_way: bool
    special: tuple[NamedToken, ...]
    special_tokens: Mapping[str, str]
    adds_bos: bool | None
    is_legacy: bool
    template: Any

    @property
    def bos(self) -> str | None:
        return self.special_tokens.get("bos_token")

    @property
    def eos(self) -> str | None:
        return self.special_tokens.get("eos_token")


def read_folder_settings(folder: Path) -> FolderSettings:
    config, special, added = (read_settings(folder / name) for name in (CONFIG, SPECIAL, ADDED))
    values = config if isinstance(config.get("added_tokens_decoder"), dict) else merged(config, special)
    by_role = {role: token for role in ROLES if (token := named_token(values.get(role))) is not None}
    tokens = {token.text: token for token in (*by_role.values(), *extra_tokens(values))}
    return FolderSettings(
        added=tuple(dict(added_by_id(config, added, set(tokens))).values()),
        added_give_way="added_tokens_decoder" not in config,
        special=tuple(tokens.values()),
        special_tokens={role: token.text for role, token in by_role.items()},
        adds_bos=boolean(config, "add_bos_token"),
        is_legacy=boolean(config, "legacy") is not False,
        template=config.get("chat_template"),
    )


def merged(config: dict[str, Any], special: dict[str, Any]) -> dict[str, Any]:
    """What both files say: special_tokens_map.json goes before for roles, a model's own names do not, and lists are joined."""
    newer, older = EXTRA
    lists = [config.get(newer) or config.get(older), special.get(newer)]
    joined = [token for tokens in lists if isinstance(tokens, list) for token in tokens]
    own = {key: value for key, value in config.items() if is_own_name(key) and isinstance(value, str)}
    values = {**config, **special, **own, **({newer: joined} if joined else {})}
    return {key: value for key, value in values.items() if key != older or config.keys().isdisjoint(EXTRA)}


def is_own_name(key: str) -> bool:
    """Whether the key names a special token of a kind of model alone, such as image_token."""
    return key.endswith("_token") and key not in (*ROLES, *NO_TOKENS)


def boolean(config: dict[str, Any], key: str) -> bool | None:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{CONFIG}: {key} is {value!r:.80}, expected true or false", hint=AGAIN)
    return value


def token_text(value: Any) -> str | None:
    """A token in the files is its text, or an object with the text as `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"a token's text is {value!r:.80}, expected a string", hint=AGAIN)
    return value


def named_token(value: Any) -> NamedToken | None:
    text = token_text(value)
    flags = value if isinstance(value, dict) else {}
    left, right, word = (flags.get(flag) is True for flag in ("lstrip", "rstrip", "single_word"))
    return NamedToken(text, left, right, word) if text else None


def extra_tokens(values: dict[str, Any]) -> Iterator[NamedToken]:
    """Special tokens without a role of their own: in lists, by a model's own names, and under keys that end with _token."""
    lists = [next((values[name] for name in EXTRA if values.get(name)), None), values.get(MODEL_SPECIFIC)]
    own = [value for key, value in values.items() if is_own_name(key)]
    found = [one for value in lists for one in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())]
    for value in [*(value for value in own if isinstance(value, str | dict)), *found]:
        if token := named_token(value):
            yield token


def added_by_id(config: dict[str, Any], added: dict[str, Any], control_texts: set[str]) -> Iterator[tuple[int, WholeToken]]:
    """added_tokens.json maps texts to ids; `added_tokens_decoder` maps ids to objects, says more, and comes last to win."""
    for text, value in added.items():
        if type(value) is not int:
            raise CheckpointError(f"{ADDED}: the id of {text!r:.100} is {value!r:.80}, expected a whole number", hint=AGAIN)
        is_control = text in control_texts
        yield value, WholeToken(text, value, is_control=is_control, is_normalized=not is_control)
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise CheckpointError(f"{CONFIG}: added_tokens_decoder is no object", hint=AGAIN)
    for key, value in decoder.items():
        name = token_text(value)
        if not key.isdecimal() or len(key) > 9 or not isinstance(value, dict) or not name:
            raise CheckpointError(f"{CONFIG}: added_tokens_decoder holds {key!r:.40}: {value!r:.80}", hint=AGAIN)
        left, right, word = (value.get(flag) is True for flag in ("lstrip", "rstrip", "single_word"))
        is_control = value.get("special") is True or name in control_texts
        yield int(key), WholeToken(name, int(key), is_control, left, right, word, value.get("normalized", not is_control) is True)
