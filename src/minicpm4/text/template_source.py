"""Where a model keeps its chat template: chat_template.jinja, tokenizer_config.json, or a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minicpm4.errors import CheckpointError
from minicpm4.text.chat_template import MAX_SOURCE, ChatTemplate
from minicpm4.text.files import AGAIN, read_text
from minicpm4.text.folder_settings import read_folder_settings
from minicpm4.text.gguf_vocabulary import role_text

DEFAULT = "default"
GGUF_KEY = "tokenizer.chat_template"


def template_of_folder(folder: Path) -> ChatTemplate | None:
    """The template of a folder, its file before its setting; None where there is none.

    CheckpointError where there are several and none of them is named `default`.
    """
    settings = read_folder_settings(folder)
    path = folder / "chat_template.jinja"
    source = read_text(path, limit=4 * MAX_SOURCE) if path.exists() else choose_source(settings.template)
    return None if source is None else ChatTemplate(source, bos=settings.bos or "", eos=settings.eos or "")


def choose_source(value: Any) -> str | None:
    """The setting's template: its text, or the default among a list of named ones."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise CheckpointError(f"tokenizer_config.json: chat_template is a {type(value).__name__}, expected text or a list", hint=AGAIN)
    named = {str(one.get("name")): one.get("template") for one in value}
    source = named.get(DEFAULT)
    if not isinstance(source, str):
        raise CheckpointError(
            f"tokenizer_config.json holds the chat templates {', '.join(named)!r:.200}, none of them the default",
            hint="name one of them default, or put it into chat_template.jinja",
        )
    return source


def template_of_gguf(metadata: Mapping[str, Any]) -> ChatTemplate | None:
    """The template in a GGUF file's metadata; None where there is none."""
    source = metadata.get(GGUF_KEY)
    if source is None:
        return None
    if not isinstance(source, str):
        raise CheckpointError(f"GGUF metadata: {GGUF_KEY} is a {type(source).__name__}, expected text", hint=AGAIN)
    return ChatTemplate(source, bos=role_text(metadata, "bos"), eos=role_text(metadata, "eos"))
