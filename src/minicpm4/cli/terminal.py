"""What goes to the terminal: answers on standard output, everything else on standard error. No bars where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from minicpm4.engine import Completion
from minicpm4.errors import MiniCPMError
from minicpm4.hardware import Choice

EXIT_INTERRUPTED = 130
notes = Console(stderr=True, highlight=False)
output = Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """A line for the person, not for a pipe."""
    notes.print(text, markup=False, style="dim", soft_wrap=True)


def warn(text: str) -> None:
    notes.print(f"warning: {text}", markup=False, style="yellow", soft_wrap=True)


def fail(error: MiniCPMError) -> None:
    notes.print(f"error: {error.message}", markup=False, style="bold red", soft_wrap=True)
    if error.hint:
        notes.print(f"hint: {error.hint}", markup=False, soft_wrap=True)


def write(text: str) -> None:
    """A piece of an answer, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def read_line(prompt: str) -> str | None:
    """A line that was typed, with editing keys and a history; None at the end of input. Ctrl-C drops the line and asks again."""
    with suppress(ImportError):  # a Python without it reads plain lines
        import readline  # noqa: F401  # its import gives `input` the editing keys
    while True:
        try:
            if sys.stdout.isatty():
                return input(prompt)
            notes.print(prompt, end="", markup=False)  # standard output is for answers alone
            return input()
        except KeyboardInterrupt:
            notes.print()
        except EOFError:
            notes.print()
            return None


class Bars:
    """Shows how far something is; a bar for each thing that is told of, the last one on top of the others."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.tasks = progress, dict[str, TaskID]()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.progress.add_task(what, total=total)
        self.progress.update(self.tasks[what], completed=done, total=total)


@contextmanager
def transfer_bar() -> Iterator[Bars]:
    """Bars of bytes on standard error, gone when done; silent where standard error is not a terminal."""
    columns = (TextColumn("[dim]{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as progress:
        yield Bars(progress)


@contextmanager
def count_bar() -> Iterator[Bars]:
    """Bars of things that are counted, with the time that is left; silent where standard error is not a terminal."""
    columns = (TextColumn("[dim]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as progress:
        yield Bars(progress)


@contextmanager
def stage_line() -> Iterator[Callable[[str], None]]:
    """A spinner whose text is set by calling what is yielded; silent where standard error is not a terminal."""
    with Progress(
        SpinnerColumn(), TextColumn("[dim]{task.description}"), console=notes, transient=True, disable=not notes.is_terminal
    ) as progress:
        task = progress.add_task("")
        yield lambda text: progress.update(task, description=text)


def summary(completion: Completion, choices: tuple[Choice, ...]) -> str:
    """The dim line after an answer: tokens, times, rates, and what ran it and why."""
    reused = f" ({completion.reused_tokens} known from before)" if completion.reused_tokens else ""
    rates = [
        f"{completion.prompt_tokens} prompt{reused} + {len(completion.token_ids)} answer tokens",
        f"first token {completion.time_to_first_token:.2f} s",
    ]
    for name, tokens, seconds in (
        ("prefill", completion.prompt_tokens - completion.reused_tokens, completion.prefill_seconds),
        ("decode", len(completion.token_ids) - 1, completion.decode_seconds),
    ):
        if tokens > 0 and seconds > 0:
            rates.append(f"{name} {tokens / seconds:.0f} tok/s")
    if completion.blocks_selected < completion.blocks_total:
        share = f"{100 * completion.attended_share:.1f} %"
        selected, total = (f"{mean:.1f}".removesuffix(".0") for mean in (completion.blocks_selected, completion.blocks_total))
        rates.append(f"attended to {selected} of {total} blocks ({share} of the tokens)")
    shown = [str(choice) for choice in choices if choice.what in ("executor", "isa")]
    return " · ".join([*rates, *shown])


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown, with columns as wide as they need be."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = (header, ["-" * width for width in widths], *rows)
    return "".join(f"| {' | '.join(text.ljust(width) for text, width in zip(line, widths, strict=True))} |\n" for line in lines)
