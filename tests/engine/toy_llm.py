"""A whole LLM so small that thousands of requests take seconds, and an executor that a test can look into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from minicpm4 import LLM
from minicpm4.engine.engine import Engine
from minicpm4.engine.session import Session
from minicpm4.executors import Executor
from minicpm4.model.hf_config import config_from_hf
from tests.checkpoint.checkpoint_files import TINY_JSON, tiny_weights, write_folder
from tests.text.tiny_tokenizers import write_tokenizer_folder


class Hooked:
    """An executor whose steps begin with a call of `before_step`."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.before_step: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def run(self, *arguments: Any, **options: Any) -> Any:
        self.before_step()
        return self._executor.run(*arguments, **options)


def toy_llm(folder: Path, **options: Any) -> LLM:
    """An LLM of one small layer of random weights, on one thread, with a byte-pair tokenizer of 400 tokens."""
    values = TINY_JSON | {"vocab_size": 400, "num_hidden_layers": 1, "max_position_embeddings": 512}
    config, _ = config_from_hf(values)
    write_folder(folder, config=values, weights=tiny_weights(config))
    return LLM(write_tokenizer_folder(folder), threads=1, **options)


def hook_into(llm: LLM, *, max_step_tokens: int) -> Hooked:
    """Gives the LLM a session of smaller steps, on an executor that a test can look into."""
    hooked = Hooked(llm.loaded.executor)
    limits = replace(llm.loaded.limits, max_step_tokens=max_step_tokens)
    llm.session = Session(Engine(hooked, limits), on_close=llm.loaded.executor.close)
    return hooked
