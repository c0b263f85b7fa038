"""Where a model keeps its chat templates: files of a folder, tokenizer_config.json, or a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minicpm4.errors import CheckpointError
from minicpm4.text.chat_template import DEFAULT, MAX_SOURCE, ChatTemplate, ChatTemplates
from minicpm4.text.files import AGAIN, read_settings, read_text
from minicpm4.text.folder_settings import read_folder_settings
from minicpm4.text.gguf_vocabulary import role_texts

FILE, OLD_FILE, FOLDER = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
GGUF_KEY = "tokenizer.chat_template"
MAX_TEMPLATES = 64


def templates_of_folder(folder: Path) -> ChatTemplates | None:
    """The templates of a folder, its files before its settings; None where there are none."""
    settings = read_folder_settings(folder)
    sources = (
        sources_in_files(folder) or named_sources(settings.template) or named_sources(read_settings(folder / OLD_FILE).get("chat_template"))
    )
    return make_templates(sources, settings.special_tokens)


def sources_in_files(folder: Path) -> dict[str, str]:
    """chat_template.jinja is the default; others lie in a folder beside it, named by their files."""
    paths = {DEFAULT: folder / FILE} | {path.stem: path for path in sorted((folder / FOLDER).glob("*.jinja"))[:MAX_TEMPLATES]}
    return {name: read_text(path, limit=4 * MAX_SOURCE) for name, path in paths.items() if path.is_file()}


def named_sources(value: Any) -> dict[str, str]:
    """The setting's templates by name: one text is the default; else a list of objects, or an object."""
    if value is None or isinstance(value, str):
        return {} if value is None else {DEFAULT: value}
    pairs = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        pairs = [(one.get("name"), one.get("template")) for one in value]
    if not pairs or len(pairs) > MAX_TEMPLATES or not all(isinstance(part, str) for pair in pairs for part in pair):
        raise CheckpointError(
            f"chat_template is a {type(value).__name__}, expected text, or a list of objects with name and template", hint=AGAIN
        )
    return dict(pairs)


def templates_of_gguf(metadata: Mapping[str, Any]) -> ChatTemplates | None:
    """The templates in a GGUF file's metadata; None where there are none."""
    sources = {}
    for key, source in metadata.items():
        if key != GGUF_KEY and not key.startswith(f"{GGUF_KEY}."):
            continue
        if not isinstance(source, str):
            raise CheckpointError(f"GGUF metadata: {key:.80} is a {type(source).__name__}, expected text", hint=AGAIN)
        sources[key.removeprefix(GGUF_KEY).removeprefix(".") or DEFAULT] = source
    return make_templates(sources, role_texts(metadata))


def make_templates(sources: Mapping[str, str], tokens: Mapping[str, str]) -> ChatTemplates | None:
    return ChatTemplates({name: ChatTemplate(source, tokens) for name, source in sources.items()}) if sources else None
