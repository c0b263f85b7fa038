"""Whether other programs ran meanwhile: without that, a slow number cannot be told from a disturbed one. Linux only."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

BUSY_FIELDS = (0, 1, 2, 5, 6, 7)  # of /proc/stat: user, nice, system, interrupts, soft interrupts, taken by the host
DISTURBED_CORES = 0.1  # what the system itself uses is below


@dataclass(frozen=True)
class CpuSample:
    """Seconds: by the clock, of all CPUs at work, and of them for this program and those that it started and that ended."""

    clock: float
    busy: float
    own: float


def sample_cpu() -> CpuSample | None:
    """None where the system does not say."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return None
    busy = sum(int(fields[index]) for index in BUSY_FIELDS) / os.sysconf("SC_CLK_TCK")
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return CpuSample(time.monotonic(), busy, sum(one.ru_utime + one.ru_stime for one in used))


def cores_of_others(before: CpuSample | None, after: CpuSample | None) -> float | None:
    """How many cores other programs used between two samples, on average."""
    if before is None or after is None or after.clock <= before.clock:
        return None
    return max(0.0, (after.busy - before.busy) - (after.own - before.own)) / (after.clock - before.clock)
