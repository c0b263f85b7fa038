"""Another commit of this project as an engine: its sources in a passing git worktree, installed into an environment of its own.

The environment is kept, a commit never changes; beside it lies the commit's own harness, which knows its interfaces.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

from benchmarks.recipe import say
from minicpm4.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def commit_of(reference: str) -> str:
    """The short id of a commit. ConfigError where there is none of that name."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "--verify", "--quiet", f"{reference}^{{commit}}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode or not done.stdout.strip():
        raise ConfigError(f"there is no commit {reference!r:.80} in this checkout", hint="name a branch, a tag, or a commit of git log")
    return done.stdout.strip()


def install_commit(commit: str, folder: Path) -> Path:
    """The interpreter of an environment that has that commit, made in the folder if it is not there (a minute or two).

    ConfigError where the commit does not build; what the tools said is in its text.
    """
    home = folder / commit
    interpreter, mark = home / "bin" / "python", home / "installed"
    if mark.exists():
        return interpreter
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    with tempfile.TemporaryDirectory(prefix="minicpm4-") as temporary:
        tree = Path(temporary) / "tree"
        run_tool(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(tree), commit])
        try:
            run_tool([str(interpreter), "-m", "pip", "--disable-pip-version-check", "install", str(tree)])
            shutil.copytree(tree / "benchmarks", harness_of(interpreter) / "benchmarks")
        finally:
            run_tool(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)])
    mark.touch()
    return interpreter


def harness_of(interpreter: Path) -> Path:
    """The folder with the commit's own `benchmarks`."""
    return interpreter.parents[1] / "harness"


def run_tool(command: Sequence[str]) -> None:
    """ConfigError with the end of its output where it fails."""
    say(" ".join(Path(part).name if part.startswith("/") else part for part in command))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{Path(command[0]).name} failed: {done.stdout[-2000:]}", hint="make the commit build by itself first")
