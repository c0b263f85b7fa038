"""What this machine is and what its user set: CPU features, cores, memory, and the only reader of environment variables."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


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


def num_cores(root: Path = ROOT) -> int:
    """Cores that this process may use: those it is bound to, or the whole ones that its control group has time for; at least one.

    root: where the system's files are read from.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *map(math.floor, cpu_shares(root))]))


def available_memory(root: Path = ROOT) -> int | None:
    """Bytes that can be allocated without swapping, in the machine and in this process's control group; None where nobody says.

    root: where the system's files are read from.
    """
    words = text_of(root / "proc/meminfo").split()
    machine = [int(words[words.index("MemAvailable:") + 1]) * 1024] if "MemAvailable:" in words else []
    return min([*machine, *memory_rooms(root)], default=None)


def text_of(path: Path) -> str:
    """What a file of the system says; nothing where it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def control_groups(root: Path, controller: str) -> list[Path]:
    """Folders of the control groups that this process is in, of version 2 and of a controller of version 1; a limit of any counts.

    A container that sees only its own group finds it at the top, whatever path it is told; other folders may not be there.
    """
    top = root / "sys/fs/cgroup"
    folders = [top, top / controller]
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            group = (top / controller if controllers else top) / path.lstrip("/")
            folders += [folder for folder in (group, *group.parents) if folder.is_relative_to(top)]
    return folders


def cpu_shares(root: Path) -> Iterator[float]:
    """Cores' worth of time that each limiting control group has."""
    for folder in control_groups(root, "cpu"):
        text = text_of(folder / "cpu.max") or text_of(folder / "cpu.cfs_quota_us") + text_of(folder / "cpu.cfs_period_us")
        quota_and_period = text.split()
        if len(quota_and_period) == 2 and all(word.isdecimal() for word in quota_and_period):  # neither "max" nor -1
            yield int(quota_and_period[0]) / int(quota_and_period[1])


def memory_rooms(root: Path) -> Iterator[int]:
    """Bytes that each limiting control group has left; what it holds of files can be dropped and counts as free."""
    for folder in control_groups(root, "memory"):
        limit = (text_of(folder / "memory.max") or text_of(folder / "memory.limit_in_bytes")).strip()
        used = (text_of(folder / "memory.current") or text_of(folder / "memory.usage_in_bytes")).strip()
        if limit.isdecimal() and used.isdecimal():  # the limit may also be "max"
            counts = dict(line.split() for line in text_of(folder / "memory.stat").splitlines())
            files = sum(int(counts.get(f"total_{kind}_file", counts.get(f"{kind}_file", 0))) for kind in ("active", "inactive"))
            yield max(0, int(limit) - int(used) + files)


def peak_memory() -> int:
    """Bytes of this process's largest resident size so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
