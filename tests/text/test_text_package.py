"""The package as a whole: what it offers, and that importing it brings in no tokenizer library."""

import subprocess
import sys

import minicpm4.text

PROBE = """
import sys
sys.modules["minicpm4"] = type(sys)("minicpm4")  # the package alone, without the engine that the root imports
sys.modules["minicpm4"].__path__ = [sys.argv[1]]
import minicpm4.text
print(*{"tokenizers", "sentencepiece", "jinja2", "minicpm4.checkpoint"} & sys.modules.keys())
"""


def test_at_most_ten_names() -> None:
    assert len(minicpm4.text.__all__) <= 10
    assert all(hasattr(minicpm4.text, name) for name in minicpm4.text.__all__)


def test_libraries_are_imported_where_they_are_needed() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, minicpm4.__path__[0]], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
