"""What the small JSON files beside a tokenizer say: its added tokens, the names of BOS and EOS, the template.

Knows tokenizer_config.json, special_tokens_map.json and added_tokens.json; the first wins where they disagree on a name, and
two ids for one token are an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm4.errors import CheckpointError
from minicpm4.text.files import AGAIN, read_settings
from minicpm4.text.tokenizer import WholeToken

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class FolderSettings:
    """added: tokens beside the vocabulary's own, by id. bos, eos: their text. adds_bos: None where the files do not say.

    is_legacy: SentencePiece models put a space before every text between control tokens, not only before the first.
    template: as the file holds it, unchecked.
    """

    added: tuple[WholeToken, ...]
    bos: str | None
    eos: str | None
    adds_bos: bool | None
    is_legacy: bool
    template: Any


def read_folder_settings(folder: Path) -> FolderSettings:
    config, special, added = (read_settings(folder / name) for name in (CONFIG, SPECIAL, ADDED))
    control_texts = {text for values in (config, special) for text in named_texts(values)}
    tokens = dict(added_by_id(config, added, control_texts))
    return FolderSettings(
        added=tuple(tokens.values()),
        bos=token_text(config.get("bos_token")) or token_text(special.get("bos_token")),
        eos=token_text(config.get("eos_token")) or token_text(special.get("eos_token")),
        adds_bos=boolean(config, "add_bos_token"),
        is_legacy=boolean(config, "legacy") is not False,
        template=config.get("chat_template"),
    )


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


def named_texts(values: dict[str, Any]) -> Iterator[str]:
    """The texts of the tokens that a file gives a role, which makes them control tokens."""
    additional = values.get("additional_special_tokens")
    for value in [*map(values.get, ROLES), *(additional if isinstance(additional, list) else [])]:
        if name := token_text(value):
            yield name


def added_by_id(config: dict[str, Any], added: dict[str, Any], control_texts: set[str]) -> Iterator[tuple[int, WholeToken]]:
    """added_tokens.json maps texts to ids; `added_tokens_decoder` maps ids to objects, says more, and comes last to win."""
    for text, value in added.items():
        if type(value) is not int:
            raise CheckpointError(f"{ADDED}: the id of {text!r:.100} is {value!r:.80}, expected a whole number", hint=AGAIN)
        yield value, WholeToken(text, value, is_control=text in control_texts)
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise CheckpointError(f"{CONFIG}: added_tokens_decoder is no object", hint=AGAIN)
    for key, value in decoder.items():
        name = token_text(value)
        if not key.isdecimal() or len(key) > 9 or not isinstance(value, dict) or not name:
            raise CheckpointError(f"{CONFIG}: added_tokens_decoder holds {key!r:.40}: {value!r:.80}", hint=AGAIN)
        is_control, left, right = (value.get(flag) is True for flag in ("special", "lstrip", "rstrip"))
        yield int(key), WholeToken(name, int(key), is_control=is_control, strips_left=left, strips_right=right)
