"""minicpm4 doctor: is everything in order, and if not, what to do."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from typing import Annotated

import typer

from minicpm4.cli import options as o
from minicpm4.cli.terminal import output, transfer_bar, write
from minicpm4.deploy import check_machine, check_model, try_executor

SIGNS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[red]wrong[/]"}
OptionalModel = Annotated[
    str | None, o.option("-m", "--model", help="A model whose files are checked too: sums, and numbers that are none.")
]


OptionalExecutor = Annotated[
    str | None, o.option("--executor", help="An executor that is tried too: what it chooses on --device and why, and that it computes.")
]

Device = Annotated[str, o.option("--device", help="Where the executor is tried: cpu, cuda (torch) or ascend (mindspore).")]


def doctor(
    model: OptionalModel = None,
    executor: OptionalExecutor = None,
    device: Device = "cpu",
    offline: o.Offline = False,
    json: o.AsJson = False,
) -> None:
    """Check the build, the CPU and the caches; with -m also a model, with --executor that it runs. Exits with 1 if anything is wrong."""
    checks = check_machine()
    if executor is not None:
        checks += try_executor(executor, device=device)
    if model is not None:
        with transfer_bar() as bar:
            checks += check_model(model, offline=offline, progress=bar)
    if json:
        write(dumps([asdict(check) for check in checks], ensure_ascii=False) + "\n")
    else:
        for check in checks:
            output.print(f"{SIGNS[check.state]:>14}  {check.what}: ", end="")
            output.print(check.found, markup=False)
    if any(check.state == "wrong" for check in checks):
        raise typer.Exit(1)
