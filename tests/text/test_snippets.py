"""What templates compute is what Jinja2 computes for `transformers`: each snippet there and here, where messages are marked."""

from __future__ import annotations

import re
from typing import Any

import pytest
from chat_cases import message
from hypothesis import given, settings
from hypothesis import strategies as st
from snippets import SNIPPETS
from tokenizers import Tokenizer as Library
from tokenizers import models

from minicpm4.errors import CheckpointError, RequestError
from minicpm4.text.chat_template import ChatTemplate
from minicpm4.text.rendering.environment import make_environment
from minicpm4.text.rendering.marked import FOREIGN, Marked, concat, foreign, is_foreign, mark_all, marks_of, plain

MESSAGES = [message("user", "Hello there,\n line two "), message("assistant", "x")]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
NOT_THE_SAME_TWICE = re.compile(r"random|pprint.*missing|0x[0-9a-f]{6,}")
FEW = [SNIPPETS[index] for index in range(0, len(SNIPPETS), 17)]


@pytest.fixture(scope="module")
def published() -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Library(models.BPE()), **TOKENS)

    def render(source: str) -> str | None:
        try:
            return tokenizer.apply_chat_template(MESSAGES, chat_template=source, tokenize=False, add_generation_prompt=True)
        except Exception:  # of Jinja, or what Jinja runs into
            return None

    return render


def rendered_here(source: str) -> str | None:
    values = {**TOKENS, **mark_all({"messages": MESSAGES, "tools": None, "documents": None}), "add_generation_prompt": True}
    try:
        return plain(concat([make_environment().from_string(source).render(values)]))
    except Exception:
        return None


def compare(source: str, expected: str | None, got: str | None) -> None:
    """Addresses and the names of our own types aside."""
    if expected is None or got is None:
        assert got == expected
        return
    hidden = [
        re.sub(r"0x[0-9a-f]{6,}|<[\w.]*(Template|Safe)\w* object|<(built-in )?(bound )?(method|function).*", "*", text)
        for text in (got, expected)
    ]
    assert hidden[0] == hidden[1]


@pytest.mark.whole
@pytest.mark.parametrize("source", SNIPPETS)
def test_same_text_as_transformers(published: Any, source: str) -> None:
    if not NOT_THE_SAME_TWICE.search(source):
        compare(source, published(source), rendered_here(source))


@pytest.mark.parametrize("source", FEW)
def test_same_text_as_transformers_in_the_process(published: Any, source: str) -> None:
    try:
        got = ChatTemplate(source, TOKENS).render(MESSAGES).text
    except (RequestError, CheckpointError):
        got = None
    compare(source, published(source), got)


TEXT = st.text("ab c,\n|é", max_size=12)
MARKED = st.builds(lambda text, marks: Marked(text, bytes(marks[: len(text)])), TEXT, st.lists(st.integers(0, 1), min_size=12, max_size=12))
CALLS = st.one_of(
    st.tuples(st.sampled_from(["lstrip", "rstrip", "strip"]), st.tuples(st.one_of(st.none(), TEXT))),
    st.tuples(st.sampled_from(["removeprefix", "removesuffix"]), st.tuples(TEXT)),
    st.tuples(
        st.sampled_from(["split", "rsplit"]), st.tuples(st.one_of(st.none(), st.text("ab ,", min_size=1, max_size=2)), st.integers(-1, 3))
    ),
    st.tuples(st.sampled_from(["partition", "rpartition"]), st.tuples(st.text("ab ,", min_size=1, max_size=2))),
    st.tuples(st.just("splitlines"), st.tuples(st.booleans())),
    st.tuples(st.just("replace"), st.tuples(st.text("ab ", max_size=2), MARKED, st.integers(-1, 3))),
    st.tuples(st.sampled_from(["upper", "lower", "title", "capitalize", "swapcase", "casefold", "expandtabs"]), st.just(())),
    st.tuples(st.sampled_from(["ljust", "rjust", "center"]), st.tuples(st.integers(0, 20), st.sampled_from(["-", " "]))),
    st.tuples(st.just("join"), st.tuples(st.lists(st.one_of(MARKED, TEXT), max_size=3))),
    st.tuples(st.sampled_from(["__add__", "__mod__"]), st.tuples(MARKED)),
    st.tuples(st.just("__mul__"), st.tuples(st.integers(-1, 3))),
    st.tuples(st.just("__getitem__"), st.tuples(st.slices(12))),
    st.tuples(st.sampled_from(["zfill", "find", "count", "isalpha"]), st.just(())),
)


def unmark(value: Any) -> Any:
    return plain(value) if isinstance(value, str) else type(value)(map(unmark, value)) if isinstance(value, list | tuple) else value


@settings(max_examples=600, deadline=None)
@given(text=MARKED, call=CALLS)
def test_methods_return_what_those_of_text_return(text: Marked, call: tuple[str, tuple[Any, ...]]) -> None:
    name, arguments = call
    try:
        expected = getattr(plain(text), name)(*map(unmark, arguments))
    except Exception as error:
        with pytest.raises(type(error)):
            getattr(text, name)(*arguments)
        return
    got = getattr(text, name)(*arguments)
    assert unmark(got) == unmark(expected)
    for piece in got if isinstance(got, list | tuple) else [got]:
        assert not isinstance(piece, str) or len(marks_of(piece)) == len(piece)


@settings(max_examples=300, deadline=None)
@given(own=st.text("ab ,", max_size=8), others=st.text("XY", max_size=8), source=st.sampled_from(["split", "strip", "replace", "slices"]))
def test_marks_stay_with_their_characters(own: str, others: str, source: str) -> None:
    """The messages' characters are X and Y, and no others are marked, wherever they go."""
    text = concat([own, foreign(others), own])
    pieces = {
        "split": lambda: text.split(",") + text.rsplit(None, 1) + text.splitlines(),
        "strip": lambda: [text.strip(), text.lstrip("aX"), text.rstrip("bY")],
        "replace": lambda: [text.replace("X", "a"), text.replace("a", foreign("Y")), text.replace("", foreign("X"), 3)],
        "slices": lambda: [text[1:5], text[::-1], text[::2], *text, text * 2, "a" + text, text + "b"],
    }[source]()
    for piece in pieces:
        assert marks_of(piece) == b"".join(FOREIGN if character in "XY" else b"\0" for character in piece)


def test_values_from_outside_are_marked_as_a_whole() -> None:
    value = mark_all({"a": ["b", {"c": None}], "d": 1})
    assert is_foreign([{"x": value}])
    assert not is_foreign({"x": ["own", 1, None]})
    assert value == {"a": ["b", {"c": None}], "d": 1}
