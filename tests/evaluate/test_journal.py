"""A journal survives being cut off, and mixes nothing that does not belong together."""

from pathlib import Path

import pytest

from minicpm4.errors import ConfigError
from minicpm4.evaluate import Journal

SETTINGS = {"model": "toy", "frame": ("a", "b")}


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.jsonl"
    journal = Journal(path, SETTINGS)
    journal.add({"key": "one", "text": "ä\u2028b"})
    journal.add({"key": "two", "text": "c"})
    path.write_text(path.read_text() + '{"key": "thr')
    again = Journal(path, SETTINGS)
    assert again.records == {"one": {"key": "one", "text": "ä\u2028b"}, "two": {"key": "two", "text": "c"}}
    again.add({"key": "three"})
    assert Journal(path, SETTINGS).records.keys() == {"one", "two", "three"}
    assert Journal(path, SETTINGS, is_fresh=True).records == {}


def test_other_settings_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    Journal(path, SETTINGS)
    with pytest.raises(ConfigError, match=r"run.jsonl was begun with other settings: .*; give --fresh"):
        Journal(path, SETTINGS | {"model": "other"})
    for text in ("no JSON\n", '{"model": "toy"}\n{"text": "no key"}\n', "{}\n5\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="is no journal of this program"):
            Journal(path, SETTINGS)
