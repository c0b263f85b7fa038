"""Shows the rows of a comparison: a Markdown table, and a picture where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.summary import MEMORY_MARGIN_MB, OURS, Rate, Row

MEMORY_NOTE = (
    "Memory: the largest resident size of the process, mapped pages of the file and the interpreter included; of ours, no more is wanted "
    f"than the file, the cache that it allocated, and {MEMORY_MARGIN_MB:.0f} MB."
)


def markdown_of(rows: Sequence[Row], *, engines: Sequence[str], baseline: str, heading: str) -> str:
    """heading: the lines above the table, which say what was compared on what."""
    others = [name for name in engines if name != baseline]
    header = ["work", "measure", *(f"{name}, tok/s" for name in engines), *(f"{name} / {baseline}" for name in others)]
    header += ["target", "per token", "ours", "share of limit"]
    speed = table_lines(header, [cells_of(row, engines=engines, others=others) for row in rows])
    memory = table_lines(
        ["work", "file, MB", "cache, MB", *(f"{name}, peak MB" for name in engines), "goal", *(f"{name}, load s" for name in engines)],
        [memory_cells(row, engines=engines) for row in {row.case: row for row in rows}.values()],
    )
    lines = [heading, "", *speed, "", MEMORY_NOTE, "", *memory]
    notes = list(dict.fromkeys(f"- {row.case}, {name} {note}" for row in rows for name, note in row.notes.items()))
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def memory_cells(row: Row, *, engines: Sequence[str]) -> list[str]:
    costs = [row.costs.get(name) for name in engines]
    peaks = ["-" if cost is None else f"{cost.peak_memory_mb:.0f}" for cost in costs]
    loads = ["-" if cost is None else f"{cost.load_seconds:.2f}" for cost in costs]
    ours = row.costs.get(OURS)
    cache = "-" if ours is None or ours.kv_mb is None else f"{ours.kv_mb:.0f}"
    return [row.case, f"{row.file_mb:.0f}", cache, *peaks, memory_verdict(row), *loads]


def memory_verdict(row: Row) -> str:
    """Whether ours took no more than the goal allows."""
    goal = row.memory_goal_mb
    if goal is None:
        return "-"
    excess = row.costs[OURS].peak_memory_mb - goal
    return f"<= {goal:.0f}: met" if excess <= 0 else f"<= {goal:.0f}: not met, {excess:.0f} MB more"


def cells_of(row: Row, *, engines: Sequence[str], others: Sequence[str]) -> list[str]:
    unit = "B" if row.measure == "decode" else "op"
    return [
        row.case,
        row.measure,
        *(rate_text(row.rates.get(name)) for name in engines),
        *(ratio_text(row, name) for name in others),
        "-" if row.target is None else f">= {row.target:.2f}",
        f"{row.mega_per_token:.0f} M{unit}",
        "-" if row.giga_per_second is None else f"{row.giga_per_second:.1f} G{unit}/s",
        "-" if row.share is None else f"{100 * row.share:.0f} % of {row.limit:.1f}",
    ]


def rate_text(rate: Rate | None) -> str:
    return "-" if rate is None else f"{rate.median:.1f} ({rate.lowest:.1f} to {rate.highest:.1f})"


def ratio_text(row: Row, name: str) -> str:
    if name not in row.ratios:
        return "-"
    low, ratio, high = span_of(row, name)
    return f"{ratio:.2f} ({low:.2f} to {high:.2f})"


def draw(rows: Sequence[Row], path: Path, *, baseline: str, title: str) -> bool:
    """A bar a row and engine: how many times the baseline's rate; a mark at the target. False where matplotlib is absent."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    shown = [row for row in rows if row.ratios]
    names = list(dict.fromkeys(name for row in shown for name in row.ratios))
    figure = Figure(figsize=(9, 1.5 + 0.4 * len(shown) * max(1, len(names))), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / max(1, len(names))
    for position, name in enumerate(names):
        bars = [(number + position * height, *span_of(row, name)) for number, row in enumerate(shown) if name in row.ratios]
        places, low, values, high = zip(*bars, strict=True)
        axes.barh(places, values, height, xerr=whiskers(low, values, high), label=name)
    targets = [(row.target, number) for number, row in enumerate(shown) if row.target is not None]
    middle = (len(names) - 1) / 2 * height
    axes.plot([target for target, _ in targets], [place + middle for _, place in targets], "k|", markersize=14, label="target")
    axes.axvline(1, color="gray", linewidth=1)
    axes.set_yticks([number + middle for number in range(len(shown))], [f"{row.case}: {row.measure}" for row in shown])
    axes.invert_yaxis()
    axes.set_xlabel(f"times the rate of {baseline}; whiskers: the lowest and highest round")
    axes.set_title(title, fontsize=8, wrap=True)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    return True


def span_of(row: Row, name: str) -> tuple[float, float, float]:
    """The engine's ratio in its lowest round, of the medians, and in its highest round."""
    low, high = row.round_ratios.get(name, (row.ratios[name],) * 2)
    return low, row.ratios[name], high


def whiskers(low: Sequence[float], values: Sequence[float], high: Sequence[float]) -> list[list[float]]:
    """Lengths below and above; a ratio of medians may lie outside the rounds' own."""
    below = [max(0.0, value - bound) for value, bound in zip(values, low, strict=True)]
    above = [max(0.0, bound - value) for value, bound in zip(values, high, strict=True)]
    return [below, above]
