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


def test_choices_and_errors_read_as_sentences() -> None:
    assert str(Choice("isa", "avx2", "no avx512 on this cpu")) == "isa avx2 (no avx512 on this cpu)"
    assert str(CheckpointError("the file is cut", hint="download it again")) == "the file is cut; download it again"
    assert str(MiniCPMError("it is so")) == "it is so"
