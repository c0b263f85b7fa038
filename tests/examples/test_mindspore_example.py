"""The original example's commands: their flags, and the default model's answer."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUESTION = "What is the capital of France?"


def run(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"examples.mindspore.{name}", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT)


@pytest.mark.mindspore
@pytest.mark.parametrize("name", ["generate", "chat"])
def test_the_default_model_answers(name: str, default_gguf: Path) -> None:
    done = run(name, "--prompt", QUESTION, "--model_name", str(default_gguf), "--attn_implementation", "paged", "--do_sample", "False")
    assert (done.returncode, done.stdout) == (0, "The capital of France is Paris.\n")


@pytest.mark.parametrize(
    ("flag", "value"), [("--attn_implementation", "flash"), ("--attn_implementation", "eager"), ("--use_cache", "False")]
)
def test_what_is_not_offered_is_said(flag: str, value: str) -> None:
    done = run("generate", flag, value)
    assert done.returncode == 2
    assert f"{flag} {value} is not offered" in done.stderr
