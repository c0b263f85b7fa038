"""What was measured, by case, engine and round, so that a comparison that was interrupted goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minicpm4.records import Journal


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
class Runs:
    """What is finished of a comparison. journal: holds it on the disk."""

    journal: Journal

    @property
    def records(self) -> list[Record]:
        return [Record(**entry) for entry in self.journal.records.values()]

    def find(self, case: Mapping[str, Any], engine: str, round: int) -> Record | None:
        found = self.journal.records.get(key_of({"case": case, "engine": engine, "round": round}))
        return None if found is None else Record(**found)

    def add(self, record: Record) -> None:
        self.journal.add(asdict(record))


def key_of(record: Mapping[str, Any]) -> str:
    return json.dumps([record["case"], record["engine"], record["round"]], sort_keys=True)


def open_journal(path: Path, settings: Mapping[str, Any], *, is_fresh: bool = False) -> Runs:
    """The runs at a path, begun if it is not there or is_fresh; see `records.Journal`."""
    return Runs(Journal(path, settings, is_fresh=is_fresh, key=key_of))
