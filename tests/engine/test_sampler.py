"""The sampler against definitions that a reader can check by hand."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4 import SamplingParams
from minicpm4.engine.sampler import Sampler, likeliest, logprobs_of


def logits_of(*probabilities):
    return np.log(np.array(probabilities, np.float32))


def take(sampler, logits):
    token = sampler.choose(logits).token
    sampler.accept(token)
    return token


def drawn(logits, count=2000, **params):
    sampler = Sampler(SamplingParams(temperature=1.0, seed=1, **params), [])
    return Counter(take(sampler, logits) for _ in range(count))


def test_greedy_takes_the_first_of_the_largest():
    assert Sampler(SamplingParams(), []).choose(np.array([0, 2, 2, 1], np.float32)).token == 1


def test_draws_with_the_probabilities_of_the_model():
    counts = drawn(logits_of(0.5, 0.3, 0.2), count=20000)
    for token, share in enumerate((0.5, 0.3, 0.2)):
        assert counts[token] == pytest.approx(20000 * share, abs=4 * (20000 * share * (1 - share)) ** 0.5)  # four deviations


def test_temperature_sharpens():
    hot, cold = (Sampler(SamplingParams(temperature=t, seed=3), []) for t in (2.0, 0.25))
    logits = logits_of(0.5, 0.3, 0.2)
    assert sum(take(cold, logits) == 0 for _ in range(500)) > sum(take(hot, logits) == 0 for _ in range(500)) + 100


@pytest.mark.parametrize("temperature", [1e-320, 1e-50, 1e-44, 1e-3], ids=str)
def test_the_coldest_temperatures_are_greedy(temperature):
    with np.errstate(all="raise", under="ignore"):  # a weight may well become 0
        sampler = Sampler(SamplingParams(temperature=temperature, top_k=3, seed=0), [])
        assert {take(sampler, np.array([-np.inf, 3.0, 1.0, -9.0], np.float32)) for _ in range(20)} == {1}


@pytest.mark.parametrize("params", [{"temperature": 1.0, "seed": 4}, {"frequency_penalty": 2.0, "repetition_penalty": 1.5}], ids=str)
def test_a_choice_that_was_not_taken_is_made_again(params):
    """A step that was interrupted is computed again: it must not cost a random number, or count for the penalties."""
    logits = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    hesitating, other = (Sampler(SamplingParams(**params), [3]) for _ in range(2))
    for _ in range(20):
        assert hesitating.choose(logits) == hesitating.choose(logits)
        assert take(hesitating, logits) == take(other, logits)


@pytest.mark.parametrize(
    ("params", "left"),
    [
        ({"top_k": 2}, {1, 3}), ({"top_p": 0.6}, {1, 3}), ({"top_p": 0.4}, {1}), ({"min_p": 0.5}, {1, 3}), ({"min_p": 1.0}, {1}),
        ({"top_k": 3, "top_p": 0.5}, {1, 3}),
    ],
    ids=str,
)  # fmt: skip
def test_filters_leave_the_likeliest(params, left):
    assert set(drawn(logits_of(0.1, 0.4, 0.2, 0.3), **params)) == left


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 7, 300, 1000]), st.integers(0, 1000), st.floats(0.05, 1), st.floats(0, 1))
def test_likeliest_is_its_definition(seed, size, top_k, top_p, min_p):
    weights = np.exp(np.random.default_rng(seed).integers(-9, 1, size)).astype(np.float64)
    weights /= weights.max()
    order = sorted(range(size), key=lambda i: (-weights[i], i))[: top_k or size]
    kept, total, sum_before = [], sum(weights[i] for i in order), 0.0
    for i in order:
        if kept and (weights[i] < min_p * weights[order[0]] or (top_p < 1 and sum_before >= top_p * total * (1 + 1e-12))):
            break
        kept.append(i)
        sum_before += weights[i]
    got = likeliest(weights, SamplingParams(temperature=1, top_k=top_k, top_p=top_p, min_p=min_p)).tolist()
    assert got[: len(kept)] == kept
    assert len(got) <= len(kept) + 1  # a sum that is top_p to rounding may fall on either side


def test_same_seed_same_tokens():
    logits = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    first, second, other = (Sampler(SamplingParams(temperature=1, top_p=0.99, seed=seed), []) for seed in (7, 7, 8))
    sequences = [[take(sampler, logits) for _ in range(20)] for sampler in (first, second, other)]
    assert sequences[0] == sequences[1] != sequences[2]


def test_repetition_penalty_counts_the_prompt_and_the_answer():
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), [0])
    logits = np.array([3.0, 2.0, -1.0], np.float32)
    assert take(sampler, logits) == 1  # 3 / 2 < 2
    assert take(sampler, logits) == 0  # 3 / 2 > 2 / 2
    negative = Sampler(SamplingParams(repetition_penalty=2.0), [0])
    assert negative.choose(np.array([-1.0, -1.5], np.float32)).token == 1  # -1 * 2 < -1.5


def test_presence_and_frequency_penalties_count_the_answer_alone():
    logits = np.array([1.0, 0.8, 0.0], np.float32)
    presence = Sampler(SamplingParams(presence_penalty=0.3), [0])
    assert [take(presence, logits) for _ in range(3)] == [0, 1, 0]
    frequency = Sampler(SamplingParams(frequency_penalty=0.15), [0])
    assert [take(frequency, logits) for _ in range(4)] == [0, 0, 1, 0]


def test_logit_bias_and_logprobs_of_the_model_itself():
    logits = logits_of(0.5, 0.3, 0.2)
    choice = Sampler(SamplingParams(logit_bias={2: 5.0}, logprobs=2), []).choose(logits)
    assert choice.token == 2
    assert choice.logprobs.logprob == pytest.approx(np.log(0.2), abs=1e-6)
    assert [token for token, _ in choice.logprobs.top] == [0, 1]
    assert choice.logprobs.top[0][1] == pytest.approx(np.log(0.5), abs=1e-6)
    assert logprobs_of(logits, 0, 0).top == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_logits_that_are_no_numbers_choose_nothing(value):
    assert Sampler(SamplingParams(), []).choose(np.full(4, value, np.float32)) is None
    assert Sampler(SamplingParams(temperature=1.0), []).choose(np.array([0, np.nan, 1], np.float32)) is None
