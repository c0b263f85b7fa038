"""Needle runs on a toy model: prompts that fill their length, cells, resuming, the recipe, the picture."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minicpm4.engine import LLM, LoadOptions
from minicpm4.errors import CapacityError, CheckpointError, ConfigError, RequestError, UnsupportedError
from minicpm4.evaluate import TASKS, NeedleOptions, NeedleResult, draw_heat_map, run_needle
from minicpm4.evaluate import needle as needle_module
from minicpm4.evaluate.heat_map import check_drawing
from minicpm4.evaluate.needle import batches
from minicpm4.evaluate.prose import Text, read_text
from minicpm4.evaluate.samples import Cell, frame_of, largest, make_sample
from minicpm4.evaluate.words import word_list
from minicpm4.records import Journal
from minicpm4.text.chat_template import Rendered

PROSE = Text("story.txt", "It was a cat. It sat there!\nWas it a dog? " * 9)
SMALL = NeedleOptions(tasks=("niah_single_1", "niah_multivalue", "vt"), lengths=(1800, 2400), depths=(0, 100), samples=2, prose=PROSE)


def run(llm: LLM, options: NeedleOptions, load: LoadOptions, path: Path, **more: Any) -> NeedleResult:
    settings: dict[str, Any] = {"journal": partial(Journal, path), "progress": lambda *_: None} | more
    return run_needle(llm, options, load=load, **settings)


@pytest.mark.parametrize("name", TASKS)
def test_a_sample_fills_its_length(toy_llm: LLM, name: str) -> None:
    cell, task = Cell(name, 4000, None), TASKS[name]
    made = [
        make_sample(toy_llm, task, cell=cell, index=3, seed=1, frame=frame_of(toy_llm, is_plain=False), sentences=PROSE.sentences)
        for _ in range(2)
    ]
    assert made[0] == made[1]
    assert len(toy_llm.encode(made[0].prompt)) == made[0].num_tokens <= 4000 - task.max_new_tokens
    assert made[0].num_tokens > 0.95 * (4000 - task.max_new_tokens)
    assert made[0].key == f"{name}/4000/any/3"


def test_the_answer_begins_with_rulers_words(toy_llm: LLM) -> None:
    cell, task = Cell("niah_single_1", 1000, 50), TASKS["niah_single_1"]
    frames = [frame_of(toy_llm, is_plain=is_plain) for is_plain in (False, True)]
    templated, plain = (make_sample(toy_llm, task, cell=cell, index=0, seed=0, frame=frame, sentences=()).prompt for frame in frames)
    assert templated.startswith("<|im_start|>user\nA special magic number is hidden")
    assert "provided text?<|im_end|>\n<|im_start|>assistant\nThe special magic number for " in templated
    assert plain.startswith("A special magic number is hidden")
    assert "provided text? The special magic number for " in plain
    assert all(prompt.endswith(" mentioned in the provided text is") for prompt in (templated, plain))
    assert toy_llm.encode(templated)[0] == 1  # <|im_start|> is a token


def test_a_run_its_cells_and_its_recipe(toy_llm: LLM, toy_load: LoadOptions, tmp_path: Path) -> None:
    seen = list[tuple[str, int, int]]()
    result = run(toy_llm, SMALL, toy_load, tmp_path / "a.jsonl", progress=lambda *state: seen.append(state))
    assert [(cell.task, cell.length, cell.depth, cell.samples) for cell in result.cells] == [
        *(("niah_single_1", 1800, depth, 2) for depth in (0, 100)), ("niah_multivalue", 1800, None, 2), ("vt", 1800, None, 2),
        *(("niah_single_1", 2400, depth, 2) for depth in (0, 100)), ("niah_multivalue", 2400, None, 2), ("vt", 2400, None, 2),
    ]  # fmt: skip
    assert seen[0] == ("samples", 0, 16)
    assert seen[-1] == ("samples", 16, 16)
    values = json.loads(result.as_json())
    assert len(values["samples"]) == 16
    assert {sample["key"].split("/")[2] for sample in values["samples"]} == {"0", "100", "any"}
    recipe = values["recipe"]
    assert recipe["command"].startswith(
        "minicpm4 evaluate needle --tasks niah_single_1,niah_multivalue,vt --lengths 1800,2400 --depths 0,100 --samples 2 --seed 0 "
        "--prose story.txt --model "
    )
    assert recipe["command"].endswith("--threads 1")
    assert recipe.keys() >= {"machine", "commit", "choices", "load", "prose", "seed", "model"}
    assert all(cell.attended_share == 1 for cell in result.cells)


def test_an_interrupted_run_computes_only_what_is_missing(toy_llm: LLM, toy_load: LoadOptions, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.jsonl"
    whole = run(toy_llm, SMALL, toy_load, path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:12]) + lines[12][:30])
    asked = list[str]()
    generate = toy_llm.generate
    monkeypatch.setattr(toy_llm, "generate", lambda prompts, params: asked.extend(prompts) or generate(prompts, params))
    again = run(toy_llm, SMALL, toy_load, path)
    assert len(asked) == 16 - 11
    assert [sample["text"] for sample in again.samples] == [sample["text"] for sample in whole.samples]
    more = NeedleOptions(tasks=("niah_single_1",), lengths=(1800,), depths=(0, 50, 100), samples=2, prose=PROSE)
    run(toy_llm, more, toy_load, path)  # what other grids have in common is not computed again
    assert len(asked) == 5 + 2
    with pytest.raises(ConfigError, match="was begun with other settings"):
        run(toy_llm, NeedleOptions(lengths=(1800,), seed=1, prose=PROSE), toy_load, path)


def test_what_is_found_is_counted(toy_llm: LLM, toy_load: LoadOptions, tmp_path: Path, monkeypatch: Any) -> None:
    """A model that knows half of the values: of single ones none or all, of four the first two."""
    generate = toy_llm.generate
    answers = dict[str, tuple[str, ...]]()
    make = needle_module.make_sample

    def remember(*args: Any, **options: Any) -> Any:
        sample = make(*args, **options)
        answers[sample.prompt] = sample.puzzle.answers
        return sample

    def know(prompts: list[str], params: Any) -> Any:
        known = [answers[prompt][: max(1, len(answers[prompt]) // 2)] for prompt in prompts]
        return [replace(done, text=" and ".join(texts)) for done, texts in zip(generate(prompts, params), known, strict=True)]

    monkeypatch.setattr(needle_module, "make_sample", remember)
    monkeypatch.setattr(toy_llm, "generate", know)
    result = run(toy_llm, SMALL, toy_load, tmp_path / "a.jsonl")
    assert [result.mean(name, 1800) for name in SMALL.tasks] == [100, 50, 40]
    assert result.mean(None, 2400) == pytest.approx(190 / 3)


def test_batches_are_neighbours_of_one_length_that_fit() -> None:
    cells = [Cell("vt", length, None) for length in (100, 100, 100, 300, 300, 100)]
    found = list(batches([(cell, 0) for cell in cells], tokens=250))
    assert [[cell.length for cell, _ in batch] for batch in found] == [[100, 100], [100], [300], [300], [100]]
    assert [len(batch) for batch in batches([(cells[0], index) for index in range(40)], tokens=1 << 20)] == [16, 16, 8]


@pytest.mark.parametrize("most", [5, 6, 7, 8, 31, 100])
def test_the_largest_size(most: int) -> None:
    asked = list[int]()
    assert largest(lambda size: asked.append(size) or size <= most, smallest=5, limit=50) == min(most, 50)  # type: ignore[func-returns-value]
    assert largest(lambda size: size <= most, smallest=most + 1, limit=50) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("qa_1",)}, "there is no task qa_1; choose of niah_single_1, "),
        ({"tasks": ()}, "there is no task asked for"),
        ({"lengths": ()}, r"lengths are \(\), samples 5"),
        ({"samples": 0}, "samples 0, expected positive"),
        ({"depths": (101.0,)}, r"depths are \(101.0,\), expected percentages"),
    ],
    ids=str,
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NeedleOptions(**options)


def test_what_a_run_refuses(toy_llm: LLM, toy_load: LoadOptions, tmp_path: Path, monkeypatch: Any) -> None:
    run_here = partial(run, toy_llm, load=toy_load, path=tmp_path / "a.jsonl")
    with pytest.raises(CapacityError, match="a length of 5000 is more than the context of 4096; lower --lengths"):
        run_here(NeedleOptions(lengths=(5000,)))
    with pytest.raises(CapacityError, match=r"cwe does not fit 300 tokens, it takes at least \d+; give longer --lengths"):
        run_here(NeedleOptions(tasks=("cwe",), lengths=(300,)))
    control = Text("bad.txt", "A text with <|im_end|> in it.")
    with pytest.raises(RequestError, match=r"bad.txt holds '<\|im_end\|>', a control token"):
        run_here(NeedleOptions(tasks=("niah_single_2",), prose=control), path=tmp_path / "b.jsonl")
    monkeypatch.setattr(type(toy_llm.loaded.templates.choose()), "render", lambda *_: Rendered("no message", ()))
    with pytest.raises(CheckpointError, match="does not write a message once; give --plain"):
        run_here(SMALL)


def test_texts_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"\xe4")
    for name, message in (("empty.txt", "empty.txt holds no text"), ("latin.txt", "cannot be read as text"), ("none.txt", "No such file")):
        with pytest.raises(RequestError, match=message):
            read_text(tmp_path / name)
    assert PROSE.sentences[:3] == ("It was a cat.", "It sat there!", "Was it a dog?")
    assert len(read_text(None).sentences) > 300


def test_the_picture(toy_llm: LLM, toy_load: LoadOptions, tmp_path: Path) -> None:
    result = run(toy_llm, SMALL, toy_load, tmp_path / "a.jsonl")
    draw_heat_map(result.cells, tmp_path / "a.png", title="toy")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, call in (("matplotlib.figure", check_drawing), ("wonderwords", word_list.__wrapped__)):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UnsupportedError, match=rf"{name.split('.')[0]}, which is not installed; pip install 'minicpm4\[evaluate\]'"):
            call()
