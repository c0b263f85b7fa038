"""What is needed to run an evaluation again, and what must be the same for its parts to belong together."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from minicpm4.engine import LLM, LoadOptions
from minicpm4.fields import words_of
from minicpm4.records import software_facts


def settings_of(llm: LLM, **options: object) -> dict[str, Any]:
    """What decides a result beside its own key: the model, everything that was chosen for it, this program, and these options."""
    loaded = llm.loaded
    facts = software_facts(loaded.executor.name)
    return {
        "model": loaded.name,
        "config": digest(repr(loaded.config)),
        "choices": [f"{choice.what} {choice.value}" for choice in loaded.choices if choice.what not in ("threads", "packed weights")],
        "sparse": None if loaded.sparse is None else asdict(loaded.sparse),
        "minicpm4": facts["minicpm4"],
        "commit": facts["commit"],
        **options,
    }


def recipe_of(llm: LLM, load: LoadOptions, *, words: list[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """words: the verb and its own flags. settings: of the journal."""
    choices = {choice.what: {"value": choice.value, "reason": choice.reason} for choice in llm.loaded.choices}
    return {
        "command": shlex.join(["minicpm4", "evaluate", *words, *words_of(load)]),
        **settings,
        **software_facts(llm.loaded.executor.name),
        "choices": choices,
        "context_length": llm.loaded.limits.context_length,
        "load": asdict(load),
    }


def digest(text: str) -> str:
    """Tells texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
