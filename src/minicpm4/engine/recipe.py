"""What every measured number says of how it came about: the machine, the versions, the commit. Knows no model."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np

from minicpm4.hardware import cpu_name


def software_facts(executor: str) -> dict[str, object]:
    """executor: the one that ran."""
    return {
        "machine": cpu_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "minicpm4": version("minicpm4"),
        **({executor: version(executor)} if executor in ("torch", "mindspore") else {}),
        "commit": source_commit(),
    }


def source_commit() -> str | None:
    """The commit of the checkout that this package runs from; None for an installed copy."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
