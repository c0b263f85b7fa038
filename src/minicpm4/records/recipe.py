"""What every measured number says of how it came about: the machine, the versions, the commit. Knows no model."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from minicpm4.hardware import cpu_name


def software_facts(*packages: str) -> dict[str, object]:
    """packages: libraries whose versions count too; those that are not installed are left out."""
    return {
        "machine": cpu_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "minicpm4": version("minicpm4"),
        **{name: found for name in packages if (found := version_of(name))},
        "commit": source_commit(),
    }


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def source_commit() -> str | None:
    """The commit of the checkout that this package runs from; None for an installed copy."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
