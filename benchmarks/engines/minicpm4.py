"""Measures this project's native executor: python -m benchmarks.engines.minicpm4 --model FILE.

The executor alone, as the other engines are measured: no text, no sampling. The interpreter decides which build runs: the
working tree's, or another commit's, which may not know yet what prompts are.
"""

# S streams, T tokens of each stream in the step, P pages of a stream

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks.engines.work import Work, measure_steps, run_program
from minicpm4.deploy import checkpoint_subject
from minicpm4.deploy.bench import source_commit
from minicpm4.engine import LoadOptions, resolve_options
from minicpm4.executors import create_executor
from minicpm4.model import PAGE_TOKENS, Step, pages_for


class MiniCPM4:
    """See `work.Engine`. Stream s owns pages s * P and up."""

    def __init__(self, work: Work) -> None:
        is_sparse = work.attention == "sparse"
        of_prompts = known_fields(LoadOptions, prompt_activations=work.prompt_activations)
        load = LoadOptions(
            model=work.model, offline=True, threads=work.threads, activations=work.activations, sparse=is_sparse, **of_prompts
        )
        self.seed, self.stream_pages = work.seed, pages_for(work.sequence_tokens)
        self.num_pages = work.streams * self.stream_pages
        with checkpoint_subject(load) as subject:
            options, _ = resolve_options(
                load, subject.config, context_length=work.sequence_tokens, num_pages=self.num_pages, formats=subject.formats
            )
            self.executor = create_executor(load.executor, subject.config, subject.weights, options=options, formats=subject.formats)
        self.chunk_tokens, self.vocab_size = options.max_step_tokens, subject.config.vocab_size
        commit = source_commit()
        self.version = version("minicpm4") + (f" ({commit})" if commit else "")
        self.details: dict[str, object] = {
            "activations": options.activations,
            "prompt_activations": getattr(options, "prompt_activations", "same"),
            "kv_format": options.kv_format,
            "attention": "dense" if options.sparse is None else "sparse",
            "kv_bytes": self.executor.kv_bytes,
            "weight_bytes_per_token": self.executor.weight_bytes,
            **{choice.what: choice.value for choice in self.executor.choices},
        }

    def rewind(self, depth: int) -> None:
        """Nothing to do: a step says itself how long its sequences are."""

    def prefill(self, tokens: list[int], position: int) -> None:
        for first in range(0, len(tokens), self.chunk_tokens):
            chunk = np.array([tokens[first : first + self.chunk_tokens]], np.int32)
            self.executor.run(stream_step(chunk, start=position + first, stream_pages=self.stream_pages, is_prompt=True))

    def fill(self, depth: int) -> None:
        if depth:
            self.executor.randomize_pages(np.arange(self.num_pages, dtype=np.int32), seed=self.seed)

    def decode(self, tokens: list[int], position: int) -> None:
        self.executor.run(stream_step(np.array(tokens, np.int32)[:, None], start=position, stream_pages=self.stream_pages, is_prompt=False))


def known_fields(kind: type, **values: Any) -> dict[str, Any]:
    """Those of the values that a dataclass has fields for."""
    return {name: value for name, value in values.items() if name in kind.__dataclass_fields__}


def stream_step(tokens_ST: np.ndarray, *, start: int, stream_pages: int, is_prompt: bool) -> Step:
    """T tokens of each of S streams, all at positions from start; the logits of each stream's last token."""
    streams, count = tokens_ST.shape
    first_pages_S1 = np.arange(streams, dtype=np.int32)[:, None] * np.int32(stream_pages)
    positions_T = np.arange(start, start + count, dtype=np.int32)
    starts_S1 = np.arange(streams + 1, dtype=np.int32) * np.int32(count)
    return Step(
        tokens_T=np.ascontiguousarray(tokens_ST.reshape(-1), np.int32),
        positions_T=np.tile(positions_T, streams),
        slots_T=(first_pages_S1 * np.int32(PAGE_TOKENS) + positions_T).reshape(-1),
        starts_S1=starts_S1,
        lengths_S=np.full(streams, start + count, np.int32),
        pages_SP=first_pages_S1 + np.arange(pages_for(start + count), dtype=np.int32),
        wanted_R=starts_S1[1:] - np.int32(1),
        **known_fields(Step, is_prompt_S=np.full(streams, is_prompt, np.int32)),
    )


if __name__ == "__main__":
    run_program(partial(measure_steps, MiniCPM4), description=__doc__)
