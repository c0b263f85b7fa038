"""Fixtures shared by all tests: where real models lie, when they are there."""

from pathlib import Path

import pytest

from minicpm4.hardware import cache_folder

ROOT = Path(__file__).resolve().parents[1]


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
