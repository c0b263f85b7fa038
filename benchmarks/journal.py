"""Remembers what was measured, so that a comparison that was interrupted goes on where it stopped.

One JSON object a line: first the settings, then a record of each finished (case, engine, round).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minicpm4.errors import ConfigError


@dataclass(frozen=True)
class Record:
    """One run of one engine.

    case: its `case_values`. bandwidth, int8_peak: bytes and int8 operations a second that the case's threads reached just before.
    other_cores: how many other programs used meanwhile, None where the system does not say. result: the engine's `Measured` as
    JSON, or {"refused": why}, or {"failed": why}.
    """

    case: Mapping[str, Any]
    engine: str
    round: int
    bandwidth: float
    int8_peak: float
    other_cores: float | None
    result: Mapping[str, Any]


@dataclass
class Journal:
    """records: all that are finished, in order. Each is on the disk as soon as it is here."""

    path: Path
    records: list[Record] = field(default_factory=list)

    def find(self, case: Mapping[str, Any], engine: str, round: int) -> Record | None:
        return next((r for r in self.records if (r.case, r.engine, r.round) == (case, engine, round)), None)

    def add(self, record: Record) -> None:
        self.records.append(record)
        append_line(self.path, asdict(record))


def open_journal(path: Path, settings: Mapping[str, Any], *, is_fresh: bool = False) -> Journal:
    """The journal at a path, begun if it is not there or is_fresh. A last line that was cut off is dropped.

    settings: what must be the same for records to be compared; ConfigError where the journal has others.
    """
    if is_fresh or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        append_line(path, settings)
        return Journal(path)
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole))
    first, *others = [json.loads(line) for line in whole] or [None]
    if first != json.loads(json.dumps(settings)):
        raise ConfigError(
            f"{path.name} was begun with other settings: {first}, now {dict(settings)}",
            hint="give --fresh to begin anew, or another --output",
        )
    return Journal(path, [Record(**entry) for entry in others])


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(value) + "\n")
