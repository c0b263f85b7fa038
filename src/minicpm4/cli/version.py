"""minicpm4 --version: the version, and what the native build can use of this CPU."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from minicpm4.errors import UnsupportedError
from minicpm4.executors import backend
from minicpm4.hardware import cpu_name


def show_version(is_wanted: bool) -> None:
    if is_wanted:
        try:
            isas = ", ".join(sorted(isa for isa in backend("native").capabilities.isas if isa))
        except UnsupportedError:
            isas = "cannot be loaded, see minicpm4 doctor"
        typer.echo(f"minicpm4 {version('minicpm4')} (native: {isas}; {cpu_name()})")
        raise typer.Exit


def print_version(
    show: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print version and CPU features.")] = False,
) -> None:
    """What the program takes before a command."""
