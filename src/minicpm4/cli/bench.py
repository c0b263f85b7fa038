"""minicpm4 bench: how fast a model, or a shape with random weights, runs here."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

from minicpm4.cli import options as o
from minicpm4.cli.grouped import grouped
from minicpm4.cli.terminal import stage_line, table_of, transfer_bar, write
from minicpm4.deploy import BenchOptions, BenchResult, Subject, checkpoint_subject, random_subject, run_bench
from minicpm4.engine import LoadOptions

RandomShape = Annotated[
    str | None, o.option("--random", help="Random weights of a shape instead of a model: 0.5B, 8B, or a config.json.", metavar="SHAPE")
]
Format = Annotated[str, o.option("--format", help="Format of the random weights.")]
Prefill = Annotated[int, o.option("--prefill", help="Tokens of the prompt, from an empty cache.")]
Decode = Annotated[int, o.option("--decode", help="Tokens generated one by one.")]
Context = Annotated[int, o.option("--context", help="Tokens in the cache before decoding, random ones.")]
Repeats = Annotated[int, o.option("--repeats", help="How often each is measured; medians are reported.")]
Seed = Annotated[int, o.option("--seed", help="Of the random tokens, weights and cache.")]


def bench_options(prefill: Prefill = 512, decode: Decode = 128, context: Context = 0, repeats: Repeats = 3, seed: Seed = 0) -> BenchOptions:
    """The group of options that say what is measured."""
    return BenchOptions(prefill=prefill, decode=decode, context=context, repeats=repeats, seed=seed)


@grouped(measure=bench_options, load=o.load_options)
def bench(random: RandomShape = None, format: Format = "q4_0", json: o.AsJson = False, *, measure: BenchOptions, load: LoadOptions) -> None:
    """Measure prefill and decode: tokens a second, bytes read, the share of the memory's speed."""
    with ExitStack() as stack:
        subject: Subject
        if random is not None:
            subject = random_subject(random, format, context_length=measure.num_tokens, seed=measure.seed)
        else:
            with transfer_bar() as bar:
                subject = stack.enter_context(checkpoint_subject(load, progress=bar))
        progress = stack.enter_context(stage_line())
        result = run_bench(subject, load, measure, progress=progress)
    if json:
        write(result.as_json() + "\n")
    else:
        write(row_of(result))


def row_of(result: BenchResult) -> str:
    """A Markdown table of one row, to be pasted anywhere."""
    share = "-" if result.bandwidth_share is None else f"{100 * result.bandwidth_share:.0f} %"
    cells = {
        "model": result.model,
        "executor": " ".join(filter(None, (result.executor, str(result.recipe.get(result.executor, "")), result.isa))),
        "precision": f"{result.format} x {result.activations}"
        + ("" if result.prompt_activations == "same" else f", prompts {result.prompt_activations}"),
        "cards": f"{result.cards} ({result.device})",
        "threads": str(result.threads),
        "paged cache": f"yes, {result.kv_format}",
        f"prefill {result.prompt_tokens}, tok/s": rate(result.prefill_tokens_per_second),
        f"decode {result.new_tokens} at {result.context}, tok/s": rate(result.decode_tokens_per_second),
        **({} if result.blocks_selected == result.blocks_total else {"attended": f"{100 * result.attended_share:.1f} %"}),
        "read, GB/s": rate(result.read_gb_per_second),
        "of the memory" if result.memory_gb_per_second is None else f"of {result.memory_gb_per_second:.0f} GB/s": share,
        "peak MB": f"{result.peak_memory_mb:.0f}",
        "load s": f"{result.load_seconds:.2f}",
    }
    return table_of(list(cells), [list(cells.values())])


def rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
