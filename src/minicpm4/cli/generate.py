"""minicpm4 generate: continues raw text."""

from __future__ import annotations

from typing import Any

from minicpm4.cli import options as o
from minicpm4.cli.answering import answer, changed_params, exit_if_interrupted, loaded_llm
from minicpm4.cli.grouped import grouped
from minicpm4.engine import LoadOptions


@grouped(load=o.load_options, changes=o.sampling_changes)
def generate(
    prompt: o.Prompt = None, add_bos: o.AddBos = None, json: o.AsJson = False, *, load: LoadOptions, changes: dict[str, Any]
) -> None:
    """Continue a text: the prompt goes to the model as it is, without a chat template."""
    text = o.read_prompt(prompt)
    with loaded_llm(load) as llm:
        stream = llm.stream(text, changed_params(llm.default_params, changes), add_bos=add_bos)
        exit_if_interrupted(answer(llm, stream, as_json=json))
