"""What this machine is and what its user set: CPU features, cores, memory, and the only reader of environment variables."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Choice:
    """A decision and why it fell this way; printed once at start."""

    what: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what} {self.value} ({self.reason})"


def setting(name: str) -> str | None:
    """The environment variable MINICPM4_<NAME>, or None where it is unset or empty."""
    return os.environ.get(f"MINICPM4_{name.upper()}") or None


def cache_folder() -> Path:
    """Where downloads are kept: MINICPM4_CACHE, else $XDG_CACHE_HOME/minicpm4, else ~/.cache/minicpm4."""
    own = setting("cache")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minicpm4"


def is_offline() -> bool:
    """Whether the user forbade the network (MINICPM4_OFFLINE or HF_HUB_OFFLINE)."""
    return any(value.lower() in ("1", "true", "yes", "on") for value in (setting("offline") or "", os.environ.get("HF_HUB_OFFLINE", "")))


def child_environment(**changes: str) -> dict[str, str]:
    """This process's environment with some variables set, for a program that it starts."""
    return {**os.environ, **changes}


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def peak_memory() -> int:
    """Bytes of this process's largest resident size so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
