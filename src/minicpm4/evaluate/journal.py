"""Remembers what is finished, one JSON object a line, so that a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minicpm4.errors import ConfigError


class Journal:
    """records: what is finished, by key. Each is on the disk as soon as it is here.

    The file's first line are settings; records of other settings are never mixed in. A last line that was cut off is dropped.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, is_fresh: bool = False) -> None:
        """Begins a file where there is none, or is_fresh; else goes on with it. ConfigError where its settings are others."""
        self.path, self.records = path, dict[str, dict[str, Any]]()
        if is_fresh or not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("", encoding="utf-8")
            self._append(settings)
            return
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if len(whole) < len(text):
            path.write_text(whole, encoding="utf-8")
        try:
            first, *others = [json.loads(line) for line in whole.split("\n")[:-1]]
            self.records = {record["key"]: dict(record) for record in others}
            found = dict(first)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path.name} is no journal of this program", hint="give another --output") from error
        self._check_settings(found, json.loads(json.dumps(settings)))

    def _check_settings(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        if names:
            differences = "; ".join(f"{name}: {found.get(name)!r:.60}, now {wanted.get(name)!r:.60}" for name in names)
            raise ConfigError(
                f"{self.path.name} was begun with other settings: {differences}",
                hint="give --fresh to begin anew, or another --output",
            )

    def add(self, record: Mapping[str, Any]) -> None:
        """record: JSON values, with a "key" of its own."""
        self.records[record["key"]] = dict(record)
        self._append(record)

    def _append(self, value: Mapping[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
