"""The command line: one file a verb; each parses its options, builds one config and calls one function."""

from __future__ import annotations

import os
import sys

import typer

from minicpm4.cli.bench import bench
from minicpm4.cli.chat import chat
from minicpm4.cli.doctor import doctor
from minicpm4.cli.evaluate import evaluate
from minicpm4.cli.generate import generate
from minicpm4.cli.pull import pull
from minicpm4.cli.show import show
from minicpm4.cli.terminal import EXIT_INTERRUPTED, fail
from minicpm4.cli.version import print_version
from minicpm4.errors import MiniCPMError

EXIT_FAILED = 1  # 2 is a usage error

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Run MiniCPM4 and other models of the Llama family.")
app.callback()(print_version)
for verb in (generate, chat, bench, show, pull, doctor):
    app.command()(verb)
app.add_typer(evaluate, name="evaluate")


def main() -> None:
    """Runs a command and ends the process: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        app()
    except MiniCPMError as error:
        fail(error)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # whoever read the answer has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
