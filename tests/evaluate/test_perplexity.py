"""Bits per byte: each token once, with the context that was promised, and the sum of what one long window would say."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.engine import LLM, LoadOptions
from minicpm4.engine.score import Scores
from minicpm4.errors import CapacityError, CheckpointError, ConfigError, RequestError
from minicpm4.evaluate import PerplexityOptions, PerplexityResult, run_perplexity
from minicpm4.evaluate.perplexity import windows_of
from minicpm4.evaluate.prose import Text, read_text
from minicpm4.records import Journal

TEXTS = [Text("a.txt", "The cat isn't here; they're there. 你好 " * 6), Text("b.txt", "In 1234 there were 10 cats and 2 dogs. " * 9)]


def run(llm: LLM, load: LoadOptions, path: Path, texts: list[Text] = TEXTS, **options: Any) -> PerplexityResult:
    return run_perplexity(llm, texts, PerplexityOptions(**options), load=load, journal=partial(Journal, path), progress=lambda *_: None)


@pytest.mark.parametrize(
    ("num_tokens", "length", "stride"), [(100, 32, 8), (100, 100, 50), (100, 200, 7), (33, 32, 31), (32, 32, 1), (2, 9, 3)]
)
@pytest.mark.parametrize("first", [0, 1])
def test_every_token_is_scored_once_with_its_context(num_tokens: int, length: int, stride: int, first: int) -> None:
    windows = list(windows_of(num_tokens, length=length, stride=stride, first=first))
    assert [token for window in windows for token in range(window.first, window.end)] == list(range(first, num_tokens))
    assert all(window.end - window.start <= length for window in windows)
    assert all(window.first - window.start >= length - stride for window in windows[1:])
    assert windows[0].start == 0


def test_one_window_is_the_whole_text(toy_llm: LLM, toy_load: LoadOptions, tmp_path: Path) -> None:
    result = run(toy_llm, toy_load, tmp_path / "a.jsonl")
    for text, score in zip(TEXTS, result.texts, strict=True):
        tokens = toy_llm.loaded.tokenizer.encode(text.text)
        bits = -toy_llm.score(tokens).logprobs_N.sum() / math.log(2)
        num_bytes = len(text.text.encode()) - len(toy_llm.loaded.tokenizer.token_bytes(tokens[0]))
        assert (score.num_tokens, score.num_bytes) == (len(tokens) - 1, num_bytes)
        assert score.bits_per_byte == pytest.approx(bits / num_bytes)
        assert score.perplexity == pytest.approx(2 ** (bits / (len(tokens) - 1)))
    assert result.total.bits == pytest.approx(sum(score.bits for score in result.texts))
    assert result.total.attended_share == 1
    values = json.loads(result.as_json())
    assert values["recipe"]["command"].startswith("minicpm4 evaluate perplexity a.txt b.txt --length 4096 --stride 2048 --model ")
    assert len(values["windows"]) == 2


def test_windows_forget_what_lies_before_them(toy_llm: LLM, toy_load: LoadOptions, tmp_path: Path) -> None:
    result = run(toy_llm, toy_load, tmp_path / "a.jsonl", TEXTS[:1], length=24, stride=10, max_tokens=50)
    tokens = toy_llm.loaded.tokenizer.encode(TEXTS[0].text)[:50]
    parts = [(0, 1, 24), (10, 24, 34), (20, 34, 44), (30, 44, 50)]
    expected = [-toy_llm.score(tokens[start:end], first=first - start).logprobs_N.sum() / math.log(2) for start, first, end in parts]
    assert [window["bits"] for window in result.windows] == pytest.approx(expected)
    assert result.texts[0].num_tokens == 49
    assert "--length 24 --stride 10 --text-tokens 50 --model" in result.recipe["command"]


def test_the_packages_own_text_needs_no_name(toy_llm: LLM, toy_load: LoadOptions, tmp_path: Path) -> None:
    result = run(toy_llm, toy_load, tmp_path / "a.jsonl", [read_text(None)], max_tokens=20)
    assert result.recipe["command"].startswith("minicpm4 evaluate perplexity --length")


def test_a_bos_begins_every_window(toy_llm: LLM, toy_load: LoadOptions, tmp_path: Path, monkeypatch: Any) -> None:
    asked = list[tuple[list[int], int]]()

    def score(tokens: list[int], *, first: int) -> Scores:
        asked.append((tokens, first))
        return Scores(np.full(len(tokens) - first, -math.log(2)), np.zeros(len(tokens) - first, np.int64))

    object.__setattr__(toy_llm.loaded.tokenizer, "before", (toy_llm.loaded.tokenizer.bos_id,))
    monkeypatch.setattr(toy_llm, "score", score)
    try:
        result = run(toy_llm, toy_load, tmp_path / "a.jsonl", TEXTS[:1], length=25, stride=10)
        tokens = toy_llm.loaded.tokenizer.encode(TEXTS[0].text, add_bos=False)
        bos = toy_llm.loaded.tokenizer.bos_id
        assert asked[:2] == [([bos, *tokens[:24]], 1), ([bos, *tokens[10:34]], 15)]
        assert result.total.num_tokens == len(tokens)
        assert result.total.num_bytes == len(TEXTS[0].text.encode())
        assert result.total.bits == pytest.approx(len(tokens))
    finally:
        object.__setattr__(toy_llm.loaded.tokenizer, "before", ())


def test_finished_windows_are_not_computed_again(toy_llm: LLM, toy_load: LoadOptions, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.jsonl"
    whole = run(toy_llm, toy_load, path, length=24, stride=10)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-3]))
    calls = list[int]()
    score = toy_llm.score
    monkeypatch.setattr(toy_llm, "score", lambda tokens, *, first: calls.append(first) or score(tokens, first=first))
    again = run(toy_llm, toy_load, path, length=24, stride=10)
    assert len(calls) == 3
    assert again.windows == whole.windows


def test_sparse_attention_sees_less(toy_load: LoadOptions, tmp_path: Path) -> None:
    load = LoadOptions(model=toy_load.model, executor="torch", threads=1, sparse=True, sparse_topk=1, sparse_window=64, dense_len=0)
    with LLM.from_options(load) as llm:
        result = run(llm, load, tmp_path / "a.jsonl", [Text("long.txt", TEXTS[1].text * 5)], length=512)
    assert 0.2 < result.total.attended_share < 0.9
    assert result.recipe["command"].endswith("--threads 1 --executor torch --sparse --sparse-topk 1 --sparse-window 64 --dense-len 0")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"length": 5000}, CapacityError, "a window of 5000 tokens is more than the context of 4096"),
        ({"length": 64, "stride": 64}, ConfigError, "the stride is 64, the window 64; a stride is shorter"),
        ({"length": 1}, ConfigError, "length is 1, expected"),
        ({"stride": 0}, ConfigError, "stride is 0, expected"),
        ({"texts": [Text("t.txt", "a")]}, RequestError, "t.txt has 1 tokens, expected at least 2"),
    ],
    ids=str,
)
def test_what_is_refused(
    toy_llm: LLM, toy_load: LoadOptions, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(toy_llm, toy_load, tmp_path / "a.jsonl", **options)


def test_broken_arithmetic_is_said(toy_llm: LLM, toy_load: LoadOptions, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(toy_llm, "score", lambda tokens, *, first: Scores(np.full(len(tokens) - first, np.nan), np.zeros(1)))
    with pytest.raises(CheckpointError, match="logits that are not numbers; check its files with"):
        run(toy_llm, toy_load, tmp_path / "a.jsonl")
