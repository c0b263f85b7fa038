"""What goes to the terminal: answers on standard output, everything else on standard error. No bars where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

from minicpm4.engine import Completion
from minicpm4.hardware import Choice

notes = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """A line for the person, not for a pipe."""
    notes.print(text, markup=False, style="dim", soft_wrap=True)


def warn(text: str) -> None:
    notes.print(f"warning: {text}", markup=False, style="yellow", soft_wrap=True)


def write(text: str) -> None:
    """A piece of an answer, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


class TransferBar:
    """Shows done and total bytes of a download or a load; appears with the first report."""

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress, self.title, self.task = progress, title, None

    def __call__(self, done: int, total: int | None) -> None:
        if self.task is None:
            self.task = self.progress.add_task(self.title, total=total)
        self.progress.update(self.task, completed=done, total=total)


@contextmanager
def transfer_bar(title: str) -> Iterator[TransferBar]:
    """A bar of bytes on standard error, gone when done; silent where standard error is not a terminal."""
    columns = (TextColumn("[dim]{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as progress:
        yield TransferBar(progress, title)


@contextmanager
def stage_line() -> Iterator[object]:
    """A spinner whose text is set by calling what is yielded; silent where standard error is not a terminal."""
    with Progress(SpinnerColumn(), TextColumn("[dim]{task.description}"), console=notes, transient=True, disable=not notes.is_terminal) as progress:
        task = progress.add_task("")
        yield lambda text: progress.update(task, description=text)


def summary(completion: Completion, choices: tuple[Choice, ...]) -> str:
    """The dim line after an answer: tokens, times, rates, and what ran it and why."""
    rates = [f"{completion.prompt_tokens} prompt + {len(completion.token_ids)} answer tokens", f"first token {completion.time_to_first_token:.2f} s"]
    for name, tokens, seconds in (
        ("prefill", completion.prompt_tokens, completion.prefill_seconds),
        ("decode", len(completion.token_ids) - 1, completion.decode_seconds),
    ):
        if tokens > 0 and seconds > 0:
            rates.append(f"{name} {tokens / seconds:.0f} tok/s")
    shown = [str(choice) for choice in choices if choice.what in ("executor", "isa")]
    return " · ".join([*rates, *shown])
