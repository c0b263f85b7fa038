"""What speed costs: bits per byte of a text by the native executor, beside the reference's: python -m benchmarks.quality

A model's projections are requantized to each format, in memory; the reference then computes with those weights in float32, the
native executor with each kind of activations, of its own for prompts where the CPU has one, and of cache. The text is one prompt; only
its logits are of activations as they are elsewhere. A model whose rows are no whole blocks of a format is padded with zeros.
What the reference found is kept in the cache folder: it is the slow part. Writes <output>.json and .md.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.padding import ValueLoader, padded_model
from benchmarks.recipe import machine_facts, result_stem, say, sources_digest, with_suffix
from benchmarks.timing import table_of
from minicpm4.checkpoint import open_checkpoint, resolve
from minicpm4.engine import read_text_side
from minicpm4.engine.score import score_tokens
from minicpm4.errors import ConfigError, MiniCPMError
from minicpm4.executors import CacheSize, backend, create_executor
from minicpm4.executors.base import BackendOptions
from minicpm4.executors.native import NativeOptions
from minicpm4.executors.reference import ReferenceOptions
from minicpm4.hardware import cache_folder, num_cores
from minicpm4.model import ModelConfig, PackedTensor, pages_for
from minicpm4.model.parameters import EMBEDDING, HEAD, parameter_shapes
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import dequantize, quantize
from minicpm4.records import write_atomic

TEXT = Path(__file__).with_name("quality.txt")
FORMATS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k", "f16", "bf16", "tq1_0", "tq2_0")
ACTIVATIONS = ("int16", "int8")
PROMPT_ACTIVATIONS = ("same", "bf16")
KV_FORMATS = ("f16", "int8")
WIDEST_BLOCK = 256
STEP_TOKENS = 256
GOAL = 0.002  # of the reference's bits per byte
NOTE = (
    "The native executor beside the reference in float32 with the same weights: how much its bits per byte differ "
    f"(how often both think the same token likeliest). No more than {100 * GOAL:.1f} % is wanted."
)
REFERENCE_SOURCES = ("checkpoint", "executors/reference", "model", "quant", "text")


@dataclass(frozen=True)
class Score:
    """Of each token after the first, given those before it: bits, and the token that was thought likeliest."""

    bits: list[float]
    best: list[int]


@dataclass(frozen=True)
class Subject:
    """A model in one format. is_padded: see `padding`. key: tells it, the text and the reference's sources from all others."""

    format: str
    config: ModelConfig
    weights: Mapping[str, PackedTensor]
    is_padded: bool
    key: str


@dataclass(frozen=True)
class Quality:
    """bits_per_byte: of the native executor; difference: relative to the reference's; agreement: how often both thought the same token
    likeliest."""

    format: str
    is_padded: bool
    activations: str
    prompt_activations: str
    kv_format: str
    bits_per_byte: float
    reference_bits_per_byte: float
    difference: float
    agreement: float

    @property
    def is_met(self) -> bool:
        return abs(self.difference) <= GOAL


def score_text(executor: str, subject: Subject, tokens: Sequence[int], *, options: BackendOptions, step_tokens: int = STEP_TOKENS) -> Score:
    """The whole text as one sequence, in steps that read what earlier ones left in the cache."""
    formats = {tensor.format.name for tensor in subject.weights.values()}
    num_pages = pages_for(len(tokens))
    cache = CacheSize(len(tokens), num_pages, step_tokens)
    runner = create_executor(executor, subject.config, subject.weights.__getitem__, options=options, cache=cache, formats=formats)
    try:
        scores = score_tokens(runner, tokens, pages=range(num_pages), step_tokens=step_tokens)
    finally:
        runner.close()
    return Score((-scores.logprobs_N / np.log(2)).tolist(), scores.likeliest_N.tolist())


def kinds() -> list[tuple[str, str, str]]:
    """(cache, prompt activations, activations), of those that this CPU has."""
    has_bf16_matrices = None in backend("native").capabilities.bf16_isas
    return list(itertools.product(KV_FORMATS, PROMPT_ACTIVATIONS if has_bf16_matrices else PROMPT_ACTIVATIONS[:1], ACTIVATIONS))


def reference_score(subject: Subject, tokens: Sequence[int], *, folder: Path) -> Score:
    """In float32 throughout. Read from the folder where it was computed before."""
    path = folder / f"{subject.key}.json"
    if path.exists():
        return Score(**json.loads(path.read_text()))
    score = score_text("reference", subject, tokens, options=ReferenceOptions(kv_format="f32"))
    write_atomic(path, json.dumps(asdict(score)))
    return score


def compare_format(subject: Subject, tokens: Sequence[int], *, num_bytes: int, threads: int, folder: Path) -> list[Quality]:
    """One for each kind of activations and of cache. num_bytes: of the text."""
    say(f"{subject.format}: reference")
    reference = reference_score(subject, tokens, folder=folder)
    found = []
    for kv_format, prompt_activations, activations in kinds():
        say(f"{subject.format}: native, activations {activations}, of prompts {prompt_activations}, cache {kv_format}")
        options = NativeOptions(threads=threads, activations=activations, prompt_activations=prompt_activations, kv_format=kv_format)
        score = score_text("native", subject, tokens, options=options)
        found.append(
            Quality(
                format=subject.format,
                is_padded=subject.is_padded,
                activations=activations,
                prompt_activations=prompt_activations,
                kv_format=kv_format,
                bits_per_byte=sum(score.bits) / num_bytes,
                reference_bits_per_byte=sum(reference.bits) / num_bytes,
                difference=sum(score.bits) / sum(reference.bits) - 1,
                agreement=float(np.mean(np.equal(score.best, reference.best))),
            )
        )
    return found


def requantized(model: Path, format_name: str, *, text: bytes) -> Subject:
    """The model with its projections in a format, made from their dequantized values; embedding and head are as they were."""
    block = STORAGE_FORMATS[format_name].block_elements
    with open_checkpoint(model) as checkpoint:
        stored = checkpoint.tensors

        def values(name: str) -> np.ndarray:
            return dequantize(checkpoint.load(name))

        config = checkpoint.config
        load: ValueLoader = values
        is_padded = any(info.shape[-1] % block for name, info in stored.items() if len(info.shape) == 2 and name not in (EMBEDDING, HEAD))
        if is_padded:
            config, load = padded_model(config, values, multiple=WIDEST_BLOCK)

        def target(name: str) -> str:
            is_projection = len(stored[name].shape) == 2 and name not in (EMBEDDING, HEAD)
            return format_name if is_projection else stored[name].format

        weights = {name: quantize(load(name), target(name), name=name) for name in parameter_shapes(config)}
    key = hashlib.sha256(text + f"{sources_digest(REFERENCE_SOURCES)} {format_name}".encode())
    with open(model, "rb") as file:
        key.update(hashlib.file_digest(file, "sha256").digest())
    return Subject(format_name, config, weights, is_padded, key.hexdigest()[:20])


def quality_table(rows: Sequence[Quality]) -> str:
    """A line a format: the difference of each kind, with how often the likeliest token is the same."""
    measured = dict.fromkeys((row.kv_format, row.prompt_activations, row.activations) for row in rows)
    header = ["format", "reference, bits/byte", *(heading(*kind) for kind in measured)]
    lines = []
    for name in dict.fromkeys(row.format for row in rows):
        own = {(row.kv_format, row.prompt_activations, row.activations): row for row in rows if row.format == name}
        first = next(iter(own.values()))
        lines.append(
            [name + (" (padded)" if first.is_padded else ""), f"{first.reference_bits_per_byte:.4f}", *map(cell, map(own.get, measured))]
        )
    return table_of(header, lines)


def heading(kv_format: str, prompt_activations: str, activations: str) -> str:
    of_prompts = "" if prompt_activations == "same" else f", of prompts {prompt_activations}"
    return f"activations {activations}{of_prompts}, cache {kv_format}"


def cell(row: Quality | None) -> str:
    if row is None:
        return "-"
    return f"{100 * row.difference:+.3f} % ({100 * row.agreement:.1f} %){'' if row.is_met else ' **not met**'}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default", help="default, or a .gguf file")
    parser.add_argument("--text", type=Path, default=TEXT, metavar="FILE", help="in UTF-8")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=tuple(STORAGE_FORMATS), metavar="FORMAT")
    parser.add_argument("--tokens", type=int, default=1024, metavar="N", help="only so many of the text; 0 for all")
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--output", type=Path, metavar="STEM", help="results/<date>-quality unless given")
    return parser.parse_args(arguments)


def read_tokens(model: Path, text: str, *, limit: int) -> tuple[list[int], int]:
    """The text's tokens, and the bytes of those that are judged."""
    with open_checkpoint(model) as checkpoint:
        tokenizer, _ = read_text_side(checkpoint, None)
    tokens = tokenizer.encode(text)[: limit or None]
    if len(tokens) < 2:
        raise ConfigError(f"the text has {len(tokens)} tokens, expected at least 2", hint="give a longer text, or raise --tokens")
    return tokens, sum(len(tokenizer.codec.token_bytes(token)) for token in tokens[1:])


def main() -> None:
    given = parse()
    rows = list[Quality]()
    try:
        model, text = resolve(given.model), given.text.read_text()
        tokens, num_bytes = read_tokens(model, text, limit=given.tokens)
        for name in given.formats:
            subject = requantized(model, name, text=json.dumps(tokens).encode())
            folder = cache_folder() / "bench" / "quality"
            rows += compare_format(subject, tokens, num_bytes=num_bytes, threads=given.threads, folder=folder)
    except MiniCPMError as error:
        sys.exit(f"error: {error}")
    facts = machine_facts() | {"model": model.name, "text": given.text.name, "tokens": len(tokens), "bytes": num_bytes, "goal": GOAL}
    stem = given.output or result_stem("quality")
    with_suffix(stem, ".json").write_text(json.dumps({"recipe": facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    where = f"{facts['date']}, {facts['machine']}, commit {facts['commit']}"
    what = f"{model.name} requantized, {num_bytes} bytes of {given.text.name} in {len(tokens)} tokens"
    shown = f"{what}; {where}.\n{NOTE}\n\n{quality_table(rows)}"
    with_suffix(stem, ".md").write_text(shown)
    print(shown)


if __name__ == "__main__":
    main()
