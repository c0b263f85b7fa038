"""Stop strings: the same as the plain definition for every way of cutting a text, and no part of one is ever shown."""

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.errors import RequestError
from minicpm4.text import StopMatcher


def by_definition(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the stop string that ends first, the longest of those that end there; and whether there is one."""
    for end in range(len(text) + 1):
        found = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(found)], True
    return text, False


def run(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    matcher = StopMatcher(stops)
    shown = [matcher.push(piece) for piece in pieces]
    return [*shown, matcher.finish()], matcher.is_stopped


def cuts(text: str) -> list[list[str]]:
    """Every way of cutting the text."""
    ways = []
    for marks in itertools.product([False, True], repeat=max(0, len(text) - 1)):
        places = [0, *(index + 1 for index, is_cut in enumerate(marks) if is_cut), len(text)]
        ways.append([text[start:end] for start, end in itertools.pairwise(places)])
    return ways


@pytest.mark.parametrize("stops", [["ab"], ["aab", "b"], ["abab"], ["a", "aa"], ["bb", "abb"], ["ba", "aba", "cab"], []], ids=str)
def test_every_cut_of_every_short_text(stops: list[str]) -> None:
    for text in map("".join, itertools.product("abc", repeat=5)):
        expected = by_definition(text, stops)
        for pieces in cuts(text):
            shown, is_stopped = run(pieces, stops)
            assert ("".join(shown), is_stopped) == expected, (pieces, stops)


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.text("ab<|\n", max_size=6), max_size=10),
    stops=st.lists(st.text("ab<|\n", min_size=1, max_size=5), max_size=4),
)
def test_what_was_shown_never_holds_a_part_of_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    shown, is_stopped = run(pieces, stops)
    text, expected = by_definition("".join(pieces), stops)
    assert ("".join(shown), is_stopped) == (text, expected)
    for count in range(len(pieces) + 1):
        assert text.startswith("".join(shown[:count]))


def test_shows_as_soon_as_it_is_certain() -> None:
    assert run(["Hello", " <", "b", "<|e", "nd|>", "x"], ["<|end|>"]) == (["Hello", " ", "<b", "", "", "", ""], True)
    assert run(["ab", "<|"], ["<|end|>"]) == (["ab", "", "<|"], False)


def test_nothing_is_shown_after_the_end() -> None:
    assert run(["a.b", "c"], ["."]) == (["a", "", ""], True)


def test_long_stop_strings_do_not_slow_it_down() -> None:
    start = time.perf_counter()
    shown, is_stopped = run(["a" * 200_000], ["a" * 100_000 + "b"])
    assert ("".join(shown), is_stopped) == ("a" * 200_000, False)
    assert time.perf_counter() - start < 5  # 0.1 s; with a search over what is held it would take minutes


@pytest.mark.parametrize("stops", [[""], ["a", ""], "ab"], ids=str)
def test_stop_strings_that_are_none(stops: list[str]) -> None:
    with pytest.raises(RequestError, match="a stop string is empty"):
        StopMatcher(stops)
