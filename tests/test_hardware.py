"""What the user set, and what the machine is: each variable counts, in its order, and nothing is guessed where nothing is known."""

import os
from pathlib import Path

import pytest

from minicpm4 import hardware
from minicpm4.errors import CheckpointError, MiniCPMError
from minicpm4.hardware import Choice, cache_folder, child_environment, is_offline, setting


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINICPM4_CACHE", "XDG_CACHE_HOME", "MINICPM4_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache_folder() == tmp_path / "home" / ".cache" / "minicpm4"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "minicpm4"
    monkeypatch.setenv("MINICPM4_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


@pytest.mark.parametrize("name", ["MINICPM4_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize(("value", "is_set"), [("1", True), ("TRUE", True), ("on", True), ("0", False), ("", False), ("no", False)])
def test_offline(monkeypatch: pytest.MonkeyPatch, name: str, value: str, is_set: bool) -> None:
    assert not is_offline()
    monkeypatch.setenv(name, value)
    assert is_offline() == is_set


def test_an_empty_setting_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINICPM4_CACHE", "")
    assert setting("cache") is None
    monkeypatch.setenv("MINICPM4_CACHE", "x")
    assert setting("cache") == "x"


def test_a_child_gets_this_environment_and_the_changes() -> None:
    assert child_environment(TMPDIR="/elsewhere") == {**os.environ, "TMPDIR": "/elsewhere"}


def test_this_machine_has_a_name_cores_and_memory() -> None:
    assert hardware.cpu_name()
    assert 1 <= hardware.num_cores() <= (os.cpu_count() or 1)
    assert hardware.peak_memory() > 1 << 20
    available = hardware.available_memory()
    assert available is None or available > 1 << 20


def test_a_system_that_does_not_say_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *arguments: object, **details: object) -> str:
        raise OSError(2, "no such file", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    assert hardware.available_memory() is None
    assert hardware.cpu_name()  # what Python knows


def write_system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


GROUP = "sys/fs/cgroup"
CPU_LIMITS: dict[str, tuple[dict[str, str], int]] = {
    "none": ({}, 64),
    "v2-unlimited": ({f"{GROUP}/cpu.max": "max 100000\n"}, 64),
    "v2": ({f"{GROUP}/cpu.max": "350000 100000\n"}, 3),
    "v2-less-than-a-core": ({f"{GROUP}/cpu.max": "50000 100000\n"}, 1),
    "v2-own-group": (
        {"proc/self/cgroup": "0::/a b/c\n", f"{GROUP}/a b/c/cpu.max": "max 100000", f"{GROUP}/a b/cpu.max": "200000 100000"},
        2,
    ),
    "v2-other-group": ({"proc/self/cgroup": "0::/a\n", f"{GROUP}/b/cpu.max": "200000 100000"}, 64),
    "v1-unlimited": ({f"{GROUP}/cpu/cpu.cfs_quota_us": "-1\n", f"{GROUP}/cpu/cpu.cfs_period_us": "100000\n"}, 64),
    "v1": (
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/docker/x\n1:name=systemd:/\n",
            f"{GROUP}/cpu/docker/x/cpu.cfs_quota_us": "400000\n",
            f"{GROUP}/cpu/docker/x/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "nonsense": ({f"{GROUP}/cpu.max": "many\n"}, 64),
}


@pytest.mark.parametrize("case", CPU_LIMITS)
def test_cores_are_those_that_the_control_group_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str) -> None:
    files, cores = CPU_LIMITS[case]
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    assert hardware.num_cores(write_system(tmp_path, files)) == cores


MEMINFO = {"proc/meminfo": "MemTotal: 2000 kB\nMemAvailable:   1000 kB\n"}
MEMORY_LIMITS: dict[str, tuple[dict[str, str], int | None]] = {
    "unknown": ({}, None),
    "none": (MEMINFO, 1_024_000),
    "v2-unlimited": ({**MEMINFO, f"{GROUP}/memory.max": "max\n", f"{GROUP}/memory.current": "1000\n"}, 1_024_000),
    "v2": ({**MEMINFO, f"{GROUP}/memory.max": "5000\n", f"{GROUP}/memory.current": "2000\n"}, 3000),
    "v2-full": ({f"{GROUP}/memory.max": "5000\n", f"{GROUP}/memory.current": "6000\n"}, 0),
    "v2-files-can-go": (
        {
            f"{GROUP}/memory.max": "5000\n",
            f"{GROUP}/memory.current": "4000\n",
            f"{GROUP}/memory.stat": "anon 1000\nactive_file 1000\ninactive_file 2000\n",
        },
        4000,
    ),
    "v1": (
        {
            **MEMINFO,
            "proc/self/cgroup": "4:memory:/box\n",
            f"{GROUP}/memory/memory.limit_in_bytes": "9223372036854771712\n",
            f"{GROUP}/memory/memory.usage_in_bytes": "7000\n",
            f"{GROUP}/memory/box/memory.limit_in_bytes": "5000\n",
            f"{GROUP}/memory/box/memory.usage_in_bytes": "4000\n",
            f"{GROUP}/memory/box/memory.stat": "inactive_file 7\ntotal_inactive_file 500\n",
        },
        1500,
    ),
}


@pytest.mark.parametrize("case", MEMORY_LIMITS)
def test_memory_is_what_the_control_group_leaves(tmp_path: Path, case: str) -> None:
    files, available = MEMORY_LIMITS[case]
    assert hardware.available_memory(write_system(tmp_path, files)) == available


def test_choices_and_errors_read_as_sentences() -> None:
    assert str(Choice("isa", "avx2", "no avx512 on this cpu")) == "isa avx2 (no avx512 on this cpu)"
    assert str(CheckpointError("the file is cut", hint="download it again")) == "the file is cut; download it again"
    assert str(MiniCPMError("it is so")) == "it is so"
