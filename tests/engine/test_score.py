"""Scoring given tokens: the logits' own log-probabilities, whatever the steps, beside requests that run."""

from collections.abc import Iterator

import numpy as np
import pytest

from minicpm4 import CapacityError, RequestError, SamplingParams
from minicpm4.engine.engine import Engine
from minicpm4.engine.limits import Limits
from minicpm4.engine.score import Scores, score_tokens
from minicpm4.executors import Executor
from minicpm4.model.step import single_step
from tests.toy import CUDA, TOY, toy_executor, toy_weights

TOKENS = [int(token) for token in np.random.default_rng(1).integers(0, TOY.vocab_size, 150)]


@pytest.fixture(scope="module", params=["reference", "native", "torch", CUDA])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    executor = toy_executor(request.param, TOY, toy_weights(TOY), num_pages=6, max_step_tokens=256)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def engine(executor: Executor) -> Engine:
    return Engine(executor, Limits(TOY.vocab_size, frozenset(), context_length=200, num_pages=6, max_step_tokens=48))


def expected(executor: Executor) -> Scores:
    logits = executor.run(single_step(TOKENS, num_logits=len(TOKENS))).logits.astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return Scores(logprobs[np.arange(149), TOKENS[1:]], logits[:-1].argmax(axis=-1))


@pytest.mark.parametrize("step_tokens", [7, 64, 256])
@pytest.mark.parametrize("first", [1, 2, 65, 149])
def test_scores_are_those_of_the_logits(executor: Executor, step_tokens: int, first: int) -> None:
    whole = expected(executor)
    scores = score_tokens(executor, TOKENS, pages=[4, 0, 3], first=first, step_tokens=step_tokens)
    np.testing.assert_allclose(scores.logprobs_N, whole.logprobs_N[first - 1 :], rtol=1e-4, atol=1e-5)  # float32 sums in other orders
    np.testing.assert_array_equal(scores.likeliest_N, whole.likeliest_N[first - 1 :])


def test_requests_that_run_are_left_alone(engine: Engine) -> None:
    params = SamplingParams(max_tokens=8, ignore_eos=True)

    def answer(*, scores_between: bool) -> list[int | None]:
        engine.add(TOKENS[:60], params)
        tokens = list[int | None]()
        while engine.scheduler.has_work:
            tokens += [token for event in engine.step() for token in event.tokens]
            if scores_between:
                engine.score(TOKENS)
        return tokens

    assert answer(scores_between=True) == answer(scores_between=False)
    assert engine.scheduler.pool.num_free == 6
    assert engine.scheduler.pool.allocate(2) == [1, 2]  # the lowest come first, as ever, but for the full page that is published
    engine.scheduler.pool.release([2, 1])


@pytest.mark.parametrize(
    ("tokens", "first", "error", "match"),
    [
        ([5], 1, RequestError, "tokens from 1 on of 1 cannot be scored; give at least two"),
        (TOKENS, 0, RequestError, "tokens from 0 on of 150 cannot be scored"),
        (TOKENS, 150, RequestError, "tokens from 150 on"),
        ([1, 97], 1, RequestError, "token 97 is not in the vocabulary of 97"),
        (TOKENS[:100] * 3, 1, CapacityError, "there are 300 tokens to score, the context holds 200"),
    ],
    ids=str,
)
def test_what_cannot_be_scored(engine: Engine, tokens: list[int], first: int, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        engine.score(tokens, first=first)


def test_pages_that_are_taken_cannot_be_had(engine: Engine) -> None:
    [request] = engine.add([1] * 199, SamplingParams())
    engine.step()
    taken = engine.scheduler.pool.allocate(engine.scheduler.pool.num_free - 2)
    with pytest.raises(CapacityError, match="scoring takes 3 pages of the cache, 2 are free; let the answers that run end first"):
        engine.score(TOKENS)
    engine.scheduler.pool.release(reversed(taken))
    engine.cancel(request)
