"""Remembers what is finished, one JSON object a line, so that a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

from minicpm4.errors import ConfigError
from minicpm4.records.atomic import write_atomic


def own_key(record: Mapping[str, Any]) -> Hashable:
    """What a record itself calls its key."""
    key: Hashable = record["key"]
    return key


class Journal:
    """records: what is finished, by key, in order. Each is on the disk before `add` returns.

    The file's first line are settings; records of other settings are never mixed in. A last line that was cut off, by a kill in the middle
    of writing it, is dropped; num_dropped_bytes says how long it was.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], *, is_fresh: bool = False, key: Callable[[Mapping[str, Any]], Hashable] = own_key
    ) -> None:
        """Begins a file where there is none, or is_fresh; else goes on with it. ConfigError where its settings are others.

        key: a record's; one of the same key replaces the one before.
        """
        self.path, self.num_dropped_bytes = path, 0
        self.records = dict[Hashable, dict[str, Any]]()
        self._key = key
        wanted = json.loads(json.dumps(settings))
        data = b"" if is_fresh or not path.exists() else path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            write_atomic(path, line_of(settings))
            return
        try:
            found, *others = [dict(json.loads(line)) for line in whole.decode().split("\n")[:-1]]
            records = {key(record): record for record in others}
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path.name} is no journal of this program", hint="give another --output") from error
        self._check_settings(found, wanted)
        self.records, self.num_dropped_bytes = records, len(data) - len(whole)
        if self.num_dropped_bytes:
            os.truncate(path, len(whole))

    def _check_settings(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        if names:
            differences = "; ".join(f"{name}: {found.get(name)!r:.60}, now {wanted.get(name)!r:.60}" for name in names)
            raise ConfigError(
                f"{self.path.name} was begun with other settings: {differences}",
                hint="give --fresh to begin anew, or another --output",
            )

    def add(self, record: Mapping[str, Any]) -> None:
        """record: JSON values."""
        with open(self.path, "ab") as file:
            file.write(line_of(record))
            file.flush()
            os.fsync(file.fileno())
        self.records[self._key(record)] = dict(record)


def line_of(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()
