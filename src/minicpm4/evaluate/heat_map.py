"""A picture of scores: for each task a field of lengths by depths. The only place that knows the drawing library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicpm4.errors import UnsupportedError
from minicpm4.evaluate.needle import CellScore
from minicpm4.evaluate.words import INSTALL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3  # of fields beside each other
FIELD_INCHES = (3.6, 2.6)


def new_figure(width: float, height: float) -> Figure:
    """UnsupportedError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError("the picture needs matplotlib, which is not installed", hint=f"{INSTALL}, or --no-picture") from error
    return Figure(figsize=(width, height), layout="constrained")


def check_drawing() -> None:
    """UnsupportedError where no picture could be drawn: better known before hours of computing than after."""
    new_figure(1, 1)


def draw_heat_map(cells: Sequence[CellScore], path: Path, *, title: str) -> None:
    """Writes the picture; its format is the path's suffix."""
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    columns = min(COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = new_figure(FIELD_INCHES[0] * columns + 1, FIELD_INCHES[1] * rows + 0.6)
    fields = figure.subplots(rows, columns, squeeze=False).ravel()
    for task, field in zip(tasks, fields, strict=False):
        image = draw_task([cell for cell in cells if cell.task == task], field)
    for field in fields[len(tasks) :]:
        field.set_axis_off()
    figure.colorbar(image, ax=list(fields), label="answers found, %")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def draw_task(cells: Sequence[CellScore], field: Any) -> Any:
    """One task's field, with its numbers in it; returns what the colours are explained by."""
    lengths, depths = (list(dict.fromkeys(getattr(cell, name) for cell in cells)) for name in ("length", "depth"))
    scores = {(cell.depth, cell.length): cell.score for cell in cells}
    image = field.imshow(
        [[scores[depth, length] for length in lengths] for depth in depths], vmin=0, vmax=100, cmap="RdYlGn", aspect="auto"
    )
    for row, depth in enumerate(depths):
        for column, length in enumerate(lengths):
            field.text(column, row, f"{scores[depth, length]:.0f}", ha="center", va="center", fontsize=8)
    field.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    field.set_yticks(range(len(depths)), ["any" if depth is None else f"{depth:g}" for depth in depths])
    field.set(title=cells[0].task, xlabel="tokens", ylabel="depth, %")
    return image
