"""A journal survives being cut off, and mixes nothing that does not belong together."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from minicpm4.errors import ConfigError
from minicpm4.records import Journal

SETTINGS = {"model": "toy", "frame": ("a", "b")}


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.jsonl"
    journal = Journal(path, SETTINGS)
    journal.add({"key": "one", "text": "ä\u2028b"})
    journal.add({"key": "two", "text": "c"})
    path.write_text(path.read_text() + '{"key": "thr')
    again = Journal(path, SETTINGS)
    assert again.num_dropped_bytes == len('{"key": "thr')
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


def test_a_kill_in_the_middle_of_writing_loses_that_record_alone(tmp_path: Path) -> None:
    """Processes that add records as fast as they can are killed, one after the other; each begins where the last one's file ends."""
    path, count = tmp_path / "run.jsonl", 0
    code = f"""
from pathlib import Path
from minicpm4.records import Journal
journal = Journal(Path({str(path)!r}), {{"model": "toy"}})
number = len(journal.records)
print(number, flush=True)
while True:
    journal.add({{"key": number, "text": "x" * 5000}})
    number += 1
"""
    for round_number in range(6):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert int(process.stdout.readline()) >= count
        while len(lines_of(path)) < count + 3:
            time.sleep(0.001 * round_number)
        process.kill()
        process.wait()
        records = Journal(path, {"model": "toy"}).records
        assert list(records) == list(range(len(records)))
        assert len(records) >= count + 2
        count = len(records)


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
