"""minicpm4 evaluate needle | perplexity: what a model finds in long texts, and how many bits a byte of text costs it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from minicpm4.cli import options as o
from minicpm4.cli.answering import loaded_llm
from minicpm4.cli.grouped import grouped
from minicpm4.cli.terminal import count_bar, say, table_of, write
from minicpm4.engine import LoadOptions
from minicpm4.evaluate import (
    TASKS,
    NeedleOptions,
    NeedleResult,
    PerplexityOptions,
    PerplexityResult,
    draw_heat_map,
    read_text,
    run_needle,
    run_perplexity,
)
from minicpm4.evaluate.heat_map import check_drawing
from minicpm4.records import Journal, write_atomic

evaluate = typer.Typer(no_args_is_help=True, help="Measure what a model finds in long texts, and how well it predicts text.")

Tasks = Annotated[str, o.option("--tasks", help=f"With commas between them, of: {', '.join(TASKS)}.", metavar="NAMES")]
Lengths = Annotated[str, o.option("--lengths", help="Tokens of prompt and answer together, with commas between them.", metavar="NUMBERS")]
Depths = Annotated[str, o.option("--depths", help="Where one needle hides, in percent, or 'any' as in RULER.", metavar="NUMBERS")]
Samples = Annotated[int, o.option("--samples", help="Samples of each task, length and depth.")]
Seed = Annotated[int, o.option("--seed", help="The same seed gives the same prompts.")]
Plain = Annotated[bool, o.option("--plain/--templated", help="Leave the model's chat template out.")]
Prose = Annotated[Path | None, o.option("--prose", help="A text to hide needles in; one comes with the package.", metavar="FILE")]
Picture = Annotated[bool, o.option("--picture/--no-picture", help="Draw the heat map (needs matplotlib).")]
Output = Annotated[Path, o.option("--output", help="Where results go, without a suffix.", metavar="STEM")]
Fresh = Annotated[bool, o.option("--fresh/--resume", help="Begin anew instead of going on with what is finished.")]
Texts = Annotated[
    list[Path] | None, typer.Argument(help="Text files in UTF-8; the package's own text without them.", envvar=f"{o.PREFIX}TEXTS")
]
Length = Annotated[int | None, o.option("--length", help="Tokens of a window; the whole context by default.")]
Stride = Annotated[int | None, o.option("--stride", help="Tokens from one window to the next; half a window by default.")]
TextTokens = Annotated[int | None, o.option("--text-tokens", help="Only so many first tokens of each text.")]
DEFAULTS = NeedleOptions()
TASK_NAMES, LENGTHS, DEPTHS = (",".join(map(str, values)) for values in (DEFAULTS.tasks, DEFAULTS.lengths, DEFAULTS.depths))


def needle_options(
    tasks: Tasks = TASK_NAMES,
    lengths: Lengths = LENGTHS,
    depths: Depths = DEPTHS,
    samples: Samples = DEFAULTS.samples,
    seed: Seed = DEFAULTS.seed,
    plain: Plain = False,
    prose: Prose = None,
) -> NeedleOptions:
    """The group of options that say what is asked."""
    try:
        numbers = tuple(map(int, lengths.split(",")))
        percents = () if depths == "any" else tuple(map(float, depths.split(",")))
    except ValueError as error:
        raise typer.BadParameter(f"{error}; expected numbers with commas between them", param_hint="--lengths, --depths") from error
    return NeedleOptions(
        tasks=tuple(tasks.split(",")),
        lengths=numbers,
        depths=percents,
        samples=samples,
        seed=seed,
        is_plain=plain,
        prose=None if prose is None else read_text(prose),
    )


@evaluate.command()
@grouped(ask=needle_options, load=o.load_options)
def needle(
    output: Output = Path("needle"),
    fresh: Fresh = False,
    picture: Picture = True,
    json: o.AsJson = False,
    *,
    ask: NeedleOptions,
    load: LoadOptions,
) -> None:
    """Hide things in long texts and ask for them: RULER's tasks that can be made without a network. Goes on where it was interrupted."""
    if picture:
        check_drawing()
    with loaded_llm(load) as llm, count_bar() as bar:
        result = run_needle(llm, ask, load=load, journal=journal_at(output, is_fresh=fresh), progress=bar)
    finish(output, result.as_json())
    if picture:
        choices = result.recipe["choices"]
        attention = choices["attention"]["value"] if "attention" in choices else "dense"
        draw_heat_map(result.cells, with_suffix(output, ".png"), title=f"{result.recipe['model']}, attention {attention}")
    write(result.as_json() + "\n" if json else needle_table(result))


@evaluate.command()
@grouped(load=o.load_options)
def perplexity(
    texts: Texts = None,
    length: Length = None,
    stride: Stride = None,
    text_tokens: TextTokens = None,
    output: Output = Path("perplexity"),
    fresh: Fresh = False,
    json: o.AsJson = False,
    *,
    load: LoadOptions,
) -> None:
    """Bits a byte of text, in windows that overlap; every token is scored once. Goes on where it was interrupted."""
    options = PerplexityOptions(length=length, stride=stride, max_tokens=text_tokens)
    found = [read_text(path) for path in texts] if texts else [read_text(None)]
    with loaded_llm(load) as llm, count_bar() as bar:
        result = run_perplexity(llm, found, options, load=load, journal=journal_at(output, is_fresh=fresh), progress=bar)
    finish(output, result.as_json())
    write(result.as_json() + "\n" if json else perplexity_table(result))


def journal_at(output: Path, *, is_fresh: bool) -> partial[Journal]:
    """Opens the journal of an output, once its settings are known."""
    return partial(Journal, with_suffix(output, ".jsonl"), is_fresh=is_fresh)


def finish(output: Path, text: str) -> None:
    path = with_suffix(output, ".json")
    write_atomic(path, text + "\n")
    say(f"written: {path}")


def with_suffix(stem: Path, suffix: str) -> Path:
    """The stem with a suffix, also where it has dots of its own."""
    return stem.with_name(stem.name + suffix)


def needle_table(result: NeedleResult) -> str:
    """A row a task, a column a length: percent of the answers found, over all depths."""
    lengths = list(dict.fromkeys(cell.length for cell in result.cells))
    tasks = list(dict.fromkeys(cell.task for cell in result.cells))
    rows = [[task, *(f"{result.mean(task, length):.1f}" for length in lengths)] for task in tasks]
    rows.append(["mean", *(f"{result.mean(None, length):.1f}" for length in lengths)])
    rows.append(["attended, % of tokens", *(f"{100 * result.attended(length):.1f}" for length in lengths)])
    return table_of(["answers found, %", *map(str, lengths)], rows)


def perplexity_table(result: PerplexityResult) -> str:
    """A row a text, and one for all where there are several."""
    scores = [*result.texts, *([result.total] if len(result.texts) > 1 else [])]
    rows = [
        [
            score.name,
            str(score.num_bytes),
            str(score.num_tokens),
            f"{score.bits_per_byte:.4f}",
            f"{score.perplexity:.2f}",
            f"{100 * score.attended_share:.1f} %",
        ]
        for score in scores
    ]
    return table_of(["text", "bytes", "tokens", "bits/byte", "perplexity", "attended"], rows)
