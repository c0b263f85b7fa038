"""Shared by all tests: where real models lie, when they are there, and whether what MindSpore or CUDA run can be run."""

import importlib
import os
from pathlib import Path

import pytest

from minicpm4.hardware import cache_folder

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mindspore", action="store_true", help="run what needs MindSpore too; it must be there, see make test-mindspore")


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads wait busily: with a worker on every core they take each other's time
    if config.getoption("--mindspore"):  # launches one by one, so that an error names its own operation
        importlib.import_module("mindspore").runtime.launch_blocking()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--mindspore"):
        skip(marked(items, "mindspore"), reason="MindSpore wants an environment of its own: make test-mindspore")
    on_cuda = marked(items, "cuda")
    if on_cuda and not importlib.import_module("torch").cuda.is_available():
        skip(on_cuda, reason="torch finds no CUDA device")


def marked(items: list[pytest.Item], marker: str) -> list[pytest.Item]:
    return [item for item in items if item.get_closest_marker(marker)]


def skip(items: list[pytest.Item], *, reason: str) -> None:
    for item in items:
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def default_gguf() -> Path:
    """The default model's file, in the user's cache."""
    path = cache_folder() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        pytest.skip("the default model is not in the cache; bring it with: minicpm4 pull default")
    return path


@pytest.fixture(scope="session")
def official() -> Path:
    """MiniCPM4's own tokenizer and configs (data files of the published checkpoints)."""
    path = ROOT.parent / "shared" / "minicpm4"
    if not path.exists():
        pytest.skip("the official tokenizer and configs are not beside the checkout (../shared/minicpm4)")
    return path
