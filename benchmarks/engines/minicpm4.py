"""Measures this project's native executor: python -m benchmarks.engines.minicpm4 --model FILE.

The executor alone, as the other engines are measured: no text, no sampling. Another commit is measured by its own program of this name.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version

import numpy as np

from benchmarks.engines.work import Work, measure_steps, run_program
from minicpm4.deploy import checkpoint_subject
from minicpm4.engine import LoadOptions
from minicpm4.engine.load import preferences_of, size_cache
from minicpm4.executors import create_executor, resolve_options
from minicpm4.executors.native import NativeOptions
from minicpm4.model import Segment, Step, make_step, pages_for
from minicpm4.records import source_commit


class MiniCPM4:
    """See `work.Engine`. Stream s owns pages s * P and up."""

    def __init__(self, work: Work) -> None:
        is_sparse = work.attention == "sparse"
        load = LoadOptions(
            model=work.model,
            offline=True,
            threads=work.threads,
            activations=work.activations,
            prompt_activations=work.prompt_activations,
            sparse=is_sparse,
        )
        self.seed, self.stream_pages = work.seed, pages_for(work.sequence_tokens)
        self.num_pages = work.streams * self.stream_pages
        with checkpoint_subject(load) as subject:
            options, _ = resolve_options("native", preferences_of(load), subject.config, formats=subject.formats)
            assert isinstance(options, NativeOptions)
            cache, _ = size_cache(load, subject.config, context_length=work.sequence_tokens, num_pages=self.num_pages)
            self.executor = create_executor(
                "native", subject.config, subject.weights, options=options, cache=cache, formats=subject.formats
            )
        self.chunk_tokens, self.vocab_size = cache.max_step_tokens, subject.config.vocab_size
        commit = source_commit()
        self.version = version("minicpm4") + (f" ({commit})" if commit else "")
        self.details: dict[str, object] = {
            "activations": options.activations,
            "prompt_activations": options.prompt_activations,
            "kv_format": options.kv_format,
            "attention": "dense" if cache.sparse is None else "sparse",
            "kv_bytes": self.executor.kv_bytes,
            "weight_bytes_per_token": self.executor.weight_bytes,
            **{choice.what: choice.value for choice in self.executor.choices},
        }

    def rewind(self, depth: int) -> None:
        """Nothing to do: a step says itself how long its sequences are."""

    def prefill(self, tokens: list[int], position: int) -> None:
        for first in range(0, len(tokens), self.chunk_tokens):
            chunk = [tokens[first : first + self.chunk_tokens]]
            self.executor.run(self.step(chunk, start=position + first, numerics=self.executor.prompt_numerics))

    def fill(self, depth: int) -> None:
        if depth:
            self.executor.randomize_pages(np.arange(self.num_pages, dtype=np.int32), seed=self.seed)

    def decode(self, tokens: list[int], position: int) -> None:
        self.executor.run(self.step([[token] for token in tokens], start=position))

    def step(self, tokens: list[list[int]], *, start: int, numerics: int = 0) -> Step:
        return stream_step(tokens, start=start, stream_pages=self.stream_pages, numerics=numerics)


def stream_step(tokens: list[list[int]], *, start: int, stream_pages: int, numerics: int = 0) -> Step:
    """Tokens of each stream, all from position `start` on; the logits of each stream's last token."""
    return make_step(
        [
            Segment(tokens=own, start=start, pages=range(stream * stream_pages, (stream + 1) * stream_pages), numerics=numerics)
            for stream, own in enumerate(tokens)
        ]
    )


if __name__ == "__main__":
    run_program(partial(measure_steps, MiniCPM4), description=__doc__)
