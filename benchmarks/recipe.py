"""What every result says of how it came about, and where results go. Paths are left out: they mean nothing elsewhere."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import minicpm4
from minicpm4 import _native
from minicpm4.hardware import cpu_name
from minicpm4.records import source_commit

PACKAGE = Path(minicpm4.__file__).parent
RESULTS = Path(__file__).resolve().parent / "results"
MISSING_MATPLOTLIB = "matplotlib is not installed, so there is no picture: pip install matplotlib"


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def machine_facts() -> dict[str, object]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": source_commit(),
        "build": build_digest(),
    }


def build_digest() -> str:
    """Tells builds of one commit apart while it is worked on: a sum over the package's sources and its native module."""
    return digest_of([*sorted(PACKAGE.rglob("*.py")), Path(_native.__file__)])


def sources_digest(places: Sequence[str]) -> str:
    """A sum over the sources of these folders of the package."""
    return digest_of([path for place in places for path in sorted((PACKAGE / place).rglob("*.py"))])


def digest_of(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def result_stem(name: str) -> Path:
    """Where today's results of that name go, without a suffix."""
    return RESULTS / f"{datetime.date.today()}-{name}"


def with_suffix(stem: Path, suffix: str) -> Path:
    """The stem with a suffix, also where it has dots of its own. Its folder is made."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    return stem.with_name(stem.name + suffix)
