"""What is needed to run an evaluation again, and what must be the same for its parts to belong together."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from minicpm4.engine import LLM, LoadOptions
from minicpm4.engine.recipe import software_facts

FLAGS = {"context_length": "ctx-size"}  # those that are not named as their fields
SWITCHES = {"coarse_lse": ("--coarse-lse", "--exact-lse")}  # those whose other side is not --no-


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
        "command": shlex.join(["minicpm4", "evaluate", *words, *load_words(load)]),
        **settings,
        **software_facts(llm.loaded.executor.name),
        "choices": choices,
        "context_length": llm.loaded.limits.context_length,
        "load": asdict(load),
    }


def load_words(load: LoadOptions) -> list[str]:
    """The flags that ask for this load: those that are not at their defaults."""
    words = list[str]()
    for field in fields(load):
        value, flag = getattr(load, field.name), FLAGS.get(field.name, field.name.replace("_", "-"))
        if value == field.default:
            continue
        if isinstance(value, bool):
            yes, no = SWITCHES.get(field.name, (f"--{flag}", f"--no-{flag}"))
            words.append(yes if value else no)
        else:
            words += [f"--{flag}", str(value)]
    return words


def digest(text: str) -> str:
    """Tells texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
