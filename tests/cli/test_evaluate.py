"""minicpm4 evaluate as a person runs it, on the default model."""

import json
import re
import shlex
from pathlib import Path

import pytest

from minicpm4.cli.evaluate import needle_options
from tests.cli.test_commands import run

NEEDLE = ("evaluate", "needle", "--tasks", "niah_single_1,fwe", "--lengths", "400,500", "--depths", "50", "--samples", "1", "-c", "512")


def test_needle_prints_a_table_and_leaves_files(default_gguf: Path, tmp_path: Path) -> None:
    stem = tmp_path / "run.1"
    code, out, notes = run(*NEEDLE, "--output", str(stem))
    assert code == 0, notes
    table = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in out.splitlines()]
    assert table[0] == ["answers found, %", "400", "500"]
    assert [row[0] for row in table[2:]] == ["niah_single_1", "fwe", "mean", "attended, % of tokens"]
    assert table[2][1:] == ["100.0", "100.0"]  # so short that even this model finds its needle
    assert (tmp_path / "run.1.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "run.1.json").read_text())
    assert len(result["samples"]) == len((tmp_path / "run.1.jsonl").read_text().splitlines()) - 1 == 4
    code, again, _ = run(*shlex.split(result["recipe"]["command"])[1:], "--output", str(stem), "--json", "--no-picture")
    assert code == 0
    assert json.loads(again)["samples"] == result["samples"]


def test_perplexity_prints_bits_per_byte(default_gguf: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("The capital of France is Paris. The capital of Italy is Rome. " * 4)
    common = ("evaluate", "perplexity", str(text), "--length", "32", "-c", "64", "--output", str(tmp_path / "out"))
    code, out, notes = run(*common)
    assert code == 0, notes
    assert re.sub(" +", " ", out.splitlines()[0]) == "| text | bytes | tokens | bits/byte | perplexity | attended |"
    result = json.loads((tmp_path / "out.json").read_text())
    assert 0.05 < result["total"]["bits_per_byte"] < 1
    assert result["total"]["num_bytes"] == len(text.read_bytes()) - 3  # the first token, "The", is given
    code, again, _ = run(*common, "--json", MINICPM4_STRIDE="31")
    assert code == 1  # the journal was begun with another stride
    code, again, _ = run(*common, "--json", "--fresh", MINICPM4_STRIDE="31")
    assert len(json.loads(again)["windows"]) < len(result["windows"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("needle", "--lengths", "4k"), 2, "expected numbers with commas between them"),
        (("needle", "--tasks", "qa_1"), 1, "error: there is no task qa_1"),
        (("needle", "--prose", "nowhere.txt"), 1, "error: nowhere.txt cannot be read as text"),
        (("needle", "--lengths", "9000"), 1, "error: a length of 9000 is more than the context of 8192"),
        (("perplexity", "nowhere.txt"), 1, "error: nowhere.txt cannot be read as text"),
        (("perplexity", "--stride", "0"), 1, "error: stride is 0"),
        (("poetry",), 2, "No such command"),
    ],
    ids=str,
)
def test_wrong_usage(default_gguf: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    output = () if arguments == ("poetry",) else ("--output", str(tmp_path / "out"))
    found, out, notes = run("evaluate", *arguments, *output)
    assert (found, out) == (code, "")
    assert message in notes


def test_any_depth_is_rulers_own() -> None:
    assert needle_options(depths="any").depths == ()
    assert needle_options(depths="0,12.5").depths == (0, 12.5)
