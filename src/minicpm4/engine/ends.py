"""Which tokens end an answer, and what says so."""

from __future__ import annotations

from collections.abc import Mapping

from minicpm4.hardware import Choice
from minicpm4.model import ModelConfig
from minicpm4.text import ChatTemplates, Tokenizer
from minicpm4.text.turn_ends import ends_by_text, without_parts


def end_tokens(
    config: ModelConfig, tokenizer: Tokenizer, *, generation: Mapping[str, object], templates: ChatTemplates | None
) -> dict[int, str]:
    """The ids that end an answer, each with what says so; ids without a row are left out.

    generation_config.json goes before config.json, as in `transformers`. The tokenizer's own end counts too, which fine-tunes for chat
    often change alone, and so does a control token that llama.cpp knows by its text, if a chat template writes it.
    """
    ends = dict.fromkeys(ids_in(generation.get("eos_token_id")), "eos_token_id of generation_config.json")
    ends = ends or dict.fromkeys(config.eos_ids, "the model's config")
    ends |= {token_id: source for token_id, source in tokenizer.ends.items() if token_id not in ends}
    sources = "".join(template.source for template in templates.named.values()) if templates else ""
    by_text = ends_by_text(tokenizer.special_tokens)
    by_text = without_parts(by_text, by_text)
    ends |= {i: "the chat template, which writes it" for i, text in by_text.items() if i not in ends and text in sources}
    return {token_id: source for token_id, source in ends.items() if 0 <= token_id < config.vocab_size}


def ids_in(value: object) -> list[int]:
    """An id, or the ids of a list."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, int) and not isinstance(one, bool)]


def end_choice(ends: Mapping[int, str], tokenizer: Tokenizer) -> Choice:
    shown = [f"{tokenizer.decode([token_id], skips_special=False)!r:.40} ({token_id}: {source})" for token_id, source in ends.items()]
    return Choice("answers end at", ", ".join(shown) or "no token", "what the files name" if ends else "the files name none")
