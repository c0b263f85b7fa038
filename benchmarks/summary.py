"""From samples to the numbers that are shown: medians, spreads, ratios, shares. Pure functions of records; prints nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.cases import Case, case_values
from benchmarks.journal import Record
from benchmarks.traffic import Traffic

OURS = "minicpm4"
MEMORY_MARGIN_MB = 80.0  # that the goal allows beside the file and the cache
MEASURES = {"prefill": "prefill_seconds", "decode": "decode_seconds_per_token"}


@dataclass(frozen=True)
class Rate:
    """Tokens a second: of the median sample, the slowest and the fastest. samples: how many there are."""

    median: float
    lowest: float
    highest: float
    samples: int


@dataclass(frozen=True)
class Cost:
    """peak_memory_mb: the most of all rounds. load_seconds: the median of them, with the file in the page cache. kv_mb: of the cache
    that the engine allocated, None where it does not say."""

    peak_memory_mb: float
    load_seconds: float
    kv_mb: float | None = None


@dataclass(frozen=True)
class Row:
    """One measure of one case. rates, costs: by engine. ratios: of medians, to the baseline; round_ratios: the lowest and the highest
    ratio of a single round, which shows how far chance goes. notes: why an engine has no rate.
    giga_per_second: what our rate means in GB/s read (decode) or Gop/s computed (prefill); limit: the memory's speed measured
    beside it, or its int8 peak; share: of that limit. None where unknown."""

    case: str
    measure: str
    rates: dict[str, Rate]
    ratios: dict[str, float]
    round_ratios: dict[str, tuple[float, float]]
    costs: dict[str, Cost]
    notes: dict[str, str]
    file_mb: float
    target: float | None
    mega_per_token: float
    giga_per_second: float | None
    limit: float | None
    share: float | None

    @property
    def memory_goal_mb(self) -> float | None:
        """The most that ours may take: the file, the cache that it allocated, and a margin. None where it did not run."""
        cost = self.costs.get(OURS)
        return None if cost is None or cost.kv_mb is None else self.file_mb + cost.kv_mb + MEMORY_MARGIN_MB


@dataclass(frozen=True)
class Yardstick:
    """What a case is measured by. baseline: the engine that ratios are made to."""

    traffic: Traffic
    baseline: str


def rows_of(case: Case, records: Sequence[Record], *, yardstick: Yardstick) -> list[Row]:
    """The case's rows, one a measure. records: of any cases."""
    own = [record for record in records if record.case == case_values(case)]
    return [make_row(case, own, measure=measure, yardstick=yardstick) for measure in MEASURES if getattr(case, measure)]


def make_row(case: Case, records: Sequence[Record], *, measure: str, yardstick: Yardstick) -> Row:
    traffic, baseline = yardstick.traffic, yardstick.baseline
    samples = {name: samples_of(case, records, measure=measure, engine=name) for name in engines_of(records)}
    rates = {name: rate_of(values) for name, values in samples.items() if values}
    mega = (traffic.bytes_per_token if measure == "decode" else traffic.operations_per_token) / 1e6
    giga = rates[OURS].median * mega / 1e3 if OURS in rates else None
    limits = [record.bandwidth if measure == "decode" else record.int8_peak for record in records]
    limit = median(limits) / 1e9 if limits else None
    return Row(
        case=case.label,
        measure=measure,
        rates=rates,
        ratios={name: rate.median / rates[baseline].median for name, rate in rates.items() if baseline in rates and name != baseline},
        round_ratios=round_ratios(case, records, measure=measure, baseline=baseline),
        costs=costs_of(records),
        notes=notes_of(records),
        file_mb=traffic.file_bytes / 1e6,
        target=case.target,
        mega_per_token=mega,
        giga_per_second=giga,
        limit=limit,
        share=giga / limit if giga and limit else None,
    )


def engines_of(records: Iterable[Record]) -> list[str]:
    """In the order in which they first ran."""
    return list(dict.fromkeys(record.engine for record in records))


def samples_of(case: Case, records: Iterable[Record], *, measure: str, engine: str, round: int | None = None) -> list[float]:
    """Tokens a second of every sample, of one round or of all."""
    tokens = case.prefill if measure == "prefill" else 1
    return [
        tokens / seconds
        for record in records
        if record.engine == engine and round in (None, record.round)
        for seconds in record.result.get(MEASURES[measure], ())
    ]


def rate_of(samples: Sequence[float]) -> Rate:
    return Rate(median(samples), min(samples), max(samples), len(samples))


def round_ratios(case: Case, records: Sequence[Record], *, measure: str, baseline: str) -> dict[str, tuple[float, float]]:
    """The lowest and highest ratio that a single round gives, by engine."""
    found: dict[str, list[float]] = {}
    for number in sorted({record.round for record in records}):
        base = samples_of(case, records, measure=measure, engine=baseline, round=number)
        for name in engines_of(records) if base else ():
            values = samples_of(case, records, measure=measure, engine=name, round=number)
            if values and name != baseline:
                found.setdefault(name, []).append(median(values) / median(base))
    return {name: (min(ratios), max(ratios)) for name, ratios in found.items()}


def costs_of(records: Sequence[Record]) -> dict[str, Cost]:
    """By engine, of those that did the work."""
    done = [record for record in records if "load_seconds" in record.result]
    return {name: cost_of([record.result for record in done if record.engine == name]) for name in engines_of(done)}


def cost_of(results: Sequence[Mapping[str, Any]]) -> Cost:
    kv_bytes = [result["details"]["kv_bytes"] for result in results if "kv_bytes" in result["details"]]
    return Cost(
        peak_memory_mb=max(result["peak_memory_mb"] for result in results),
        load_seconds=median(result["load_seconds"] for result in results),
        kv_mb=max(kv_bytes) / 1e6 if kv_bytes else None,
    )


def notes_of(records: Iterable[Record]) -> dict[str, str]:
    """Why an engine did not do the work, by engine."""
    return {
        record.engine: f"{kind}: {record.result[kind]}" for record in records for kind in ("refused", "failed") if kind in record.result
    }
