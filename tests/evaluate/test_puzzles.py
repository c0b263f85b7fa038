"""Puzzles are what RULER asks: its words, its numbers of things, each answer where it belongs."""

import re
from collections import Counter
from random import Random

import pytest

from minicpm4.evaluate import TASKS
from minicpm4.evaluate.needle import EXACT_TASKS
from minicpm4.evaluate.needles import NOISE
from minicpm4.evaluate.puzzle import Puzzle, Setting, share_found
from minicpm4.evaluate.words import word_list

SENTENCES = tuple(f"Sentence number {number} of a story." for number in range(30))


def make(name: str, size: int = 100, *, seed: int = 0, length: int = 4096, depth: float | None = None) -> Puzzle:
    return TASKS[name].make(Random(seed), size, Setting(length, depth, SENTENCES))


def test_the_tasks_are_rulers_but_for_its_two_of_question_answering() -> None:
    assert set(EXACT_TASKS) == {"niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe"}
    prose = {"niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery"}
    assert set(TASKS) == {*EXACT_TASKS, *prose}
    assert {task.max_new_tokens for name, task in TASKS.items() if name.startswith("niah")} == {128}
    assert [TASKS[name].max_new_tokens for name in ("vt", "cwe", "fwe")] == [30, 120, 50]


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_is_a_puzzle_and_its_answers_are_in_it(name: str) -> None:
    puzzle = make(name, seed=3)
    assert puzzle == make(name, seed=3) != make(name, seed=4)
    assert all(answer in puzzle.question for answer in puzzle.answers)
    assert (puzzle.depth is not None) == TASKS[name].has_depth
    smallest = make(name, TASKS[name].min_size)
    assert all(answer in smallest.question for answer in smallest.answers)


@pytest.mark.parametrize(
    ("name", "needles", "answers"),
    [
        ("niah_single_1", 1, 1), ("niah_single_2", 1, 1), ("niah_single_3", 1, 1), ("niah_multikey_1", 4, 1),
        ("niah_multikey_2", 101, 1), ("niah_multikey_3", 101, 1), ("niah_multivalue", 4, 4), ("niah_multiquery", 4, 4),
    ],
)  # fmt: skip
def test_so_many_needles(name: str, needles: int, answers: int) -> None:
    puzzle = make(name)
    assert puzzle.question.count("One of the special magic") == needles
    assert len(puzzle.answers) == answers


def test_the_words_of_one_needle() -> None:
    puzzle = make("niah_single_1", 3)
    lines = puzzle.question.splitlines()
    assert lines[0] == (
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the number afterwards."
    )
    assert lines.count(NOISE) == 3
    [needle] = [line for line in lines if line.startswith("One of")]
    key = needle.removeprefix("One of the special magic numbers for ").split(" is: ")[0]
    assert needle == f"One of the special magic numbers for {key} is: {puzzle.answers[0]}."
    assert lines[-1] == f"What is the special magic number for {key} mentioned in the provided text?"
    assert puzzle.answer_start == f"The special magic number for {key} mentioned in the provided text is"
    assert len(puzzle.answers[0]) == 7


def test_the_words_of_several_needles() -> None:
    puzzle = make("niah_multiquery")
    assert puzzle.question.startswith("Some special magic numbers are hidden within the following text. Make sure to memorize it.")
    assert "What are all the special magic numbers for " in puzzle.question
    asked = puzzle.answer_start.removeprefix("The special magic numbers for ").removesuffix(" mentioned in the provided text are")
    assert asked.count(", ") == 3
    keys = asked.replace(" and ", " ").split(", ")
    for key, value in zip(keys, puzzle.answers, strict=True):
        assert f"One of the special magic numbers for {key} is: {value}." in puzzle.question


@pytest.mark.parametrize("depth", [0, 30, 100])
@pytest.mark.parametrize("name", ["niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multikey_2"])
def test_a_needle_lies_where_it_is_wanted(name: str, depth: float) -> None:
    puzzle = make(name, depth=depth)
    assert puzzle.depth == depth
    place = puzzle.question.index(puzzle.answers[0]) / len(puzzle.question)
    assert place == pytest.approx(depth / 100, abs=0.08)  # the question's own words are at both ends


def test_without_a_depth_needles_lie_anywhere() -> None:
    depths = {make("niah_single_1", seed=seed).depth for seed in range(40)}
    assert len(depths) > 15
    assert min(depths) < 20 < 80 < max(depths)


def test_prose_that_is_too_short_begins_again() -> None:
    assert make("niah_single_2", 70).question.count("Sentence number 3 of") == 3


def test_a_chain_of_variables() -> None:
    puzzle = make("vt", 50)
    example, asked = puzzle.question.split("\n\n\n")
    shown = example.split("they are: ")[1].split()
    assert len(shown) == 5
    assert all(f"VAR {name} = " in example and len(name) == 3 for name in shown)
    names = puzzle.answers
    assert len(set(names)) == 5
    assert all(len(name) == 5 and name.isupper() for name in names)
    places = [asked.index(f"VAR {name} = ") for name in names]
    assert places == sorted(places)
    assert f"VAR {names[4]} = VAR {names[3]}" in asked
    value = asked.split(f"VAR {names[0]} = ")[1].split()[0]
    assert f"assigned the value {value} in the text above" in asked
    assert puzzle.answer_start.endswith(f"5 variables are assigned the value {value}, they are:")
    assert asked.count(NOISE) == 50


@pytest.mark.parametrize(("length", "repeats"), [(4095, (6, 1)), (4096, (30, 3))])
def test_common_words_are_more_common(length: int, repeats: tuple[int, int]) -> None:
    puzzle = make("cwe", 50, length=length)
    asked = puzzle.question.split("Memorize the ones that appear most often.\n")[2].split("\nQuestion")[0]
    words = [word.strip() for word in re.split(r"\d+\. ", asked) if word.strip()]
    counts = Counter(words)
    assert set(counts.values()) == set(repeats)
    assert {word for word, count in counts.items() if count == repeats[0]} == set(puzzle.answers)
    assert len(counts) == 50
    assert counts.keys() <= set(word_list().all)


@pytest.mark.parametrize("size", [60, 700])
def test_frequent_words_follow_zetas_law(size: int) -> None:
    puzzle = make("fwe", size, length=2000)
    coded = puzzle.question.split("frequently appeared coded words. ")[1].split("\nQuestion")[0].split()
    (dots, most), *others = Counter(coded).most_common(5)
    assert dots == "..."
    assert most == int(size * 0.6079271)
    assert [word for word, _ in others[:3]] == list(puzzle.answers)
    assert others[2][1] > others[3][1]
    assert len(set(coded)) <= 40


@pytest.mark.parametrize(
    ("text", "answers", "share"),
    [
        (" 1234567.", ("1234567",), 1), ("It is ABC-def", ("abc-DEF",), 1), ("12345", ("123456",), 0), ("a b", ("a", "b", "c", "d"), 0.5),
        ("one\x00two", ("one two",), 0), ("", ("x",), 0),
    ],
)  # fmt: skip
def test_strings_are_matched_as_ruler_does(text: str, answers: tuple[str, ...], share: float) -> None:
    assert share_found(text, answers) == share
