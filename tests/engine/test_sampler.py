"""The sampler against definitions that a reader can check by hand."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4 import SamplingParams
from minicpm4.engine.sampler import Sampler, candidates, logprobs_of, top_ids
from minicpm4.executors.base import BlockMaxima


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
        ({"top_k": 2}, {1, 3}), ({"top_p": 0.6}, {1, 3}), ({"top_p": 0.39}, {1}), ({"min_p": 0.5}, {1, 3}), ({"min_p": 1.0}, {1}),
        ({"top_k": 3, "top_p": 0.5}, {1, 3}),
    ],
    ids=str,
)  # fmt: skip
def test_filters_leave_the_likeliest(params, left):
    assert set(drawn(logits_of(0.1, 0.4, 0.2, 0.3), **params)) == left


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 7, 300, 1000]), st.integers(0, 1000), st.floats(0.05, 1), st.floats(0, 1))
def test_candidates_are_their_definition(seed, size, top_k, top_p, min_p):
    logits = np.random.default_rng(seed).integers(-9, 1, size).astype(np.float32)
    weights = np.exp((logits - logits.max()).astype(np.float64))
    order = sorted(range(size), key=lambda i: (-weights[i], i))[: top_k or size]
    kept, total, sum_before = [], sum(weights[i] for i in order), 0.0
    for i in order:
        if kept and (weights[i] < min_p * weights[order[0]] or (top_p < 1 and sum_before >= top_p * total * (1 + 1e-12))):
            break
        kept.append(i)
        sum_before += weights[i]
    params = SamplingParams(temperature=1, top_k=top_k, top_p=top_p, min_p=min_p)
    ids, got_weights, rest = candidates(logits, params, partial(top_ids, logits), share=1.0)
    got = ids.tolist()
    assert got[: len(kept)] == kept[: len(got)]
    differing = [weights[i] for i in {*got} ^ {*kept}]  # a sum that is top_p to rounding, in float32, may fall on either side
    assert sum(differing) <= 4e-6 * total + max(differing, default=0)
    np.testing.assert_array_equal(got_weights, weights[ids])
    assert (rest is None) == (0 < top_k < size or top_p < 1 or min_p > 0)


def maxima_of(logits, width):
    padded = np.pad(logits, (0, -len(logits) % width), constant_values=-np.inf)
    return BlockMaxima(width, padded.reshape(-1, width).max(axis=1))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 127, 1000, 9001]),
    width=st.sampled_from([1, 16, 128]),
    are_equal=st.booleans(),
    temperature=st.sampled_from([0, 1e-50, 0.3, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 40, 500]),
    top_p=st.sampled_from([0.01, 0.8, 1.0]),
    min_p=st.sampled_from([0.0, 0.05]),
    penalty=st.sampled_from([0.0, 1.0]),
)
def test_block_maxima_change_nothing_but_the_time(seed, size, width, are_equal, temperature, top_k, top_p, min_p, penalty):
    random = np.random.default_rng(seed)
    logits = (random.integers(-3, 3, size) if are_equal else random.standard_normal(size) * 3).astype(np.float32)
    logits[random.random(size) < 0.1] = -np.inf
    logits[random.integers(size)] = 1  # one is a number
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, presence_penalty=penalty, seed=seed, logprobs=2)
    plain, peaked = Sampler(params, []), Sampler(params, [])
    maxima = maxima_of(logits, width)
    for _ in range(5):
        choice = plain.choose(logits)
        assert peaked.choose(logits, maxima) == choice
        plain.accept(choice.token)
        peaked.accept(choice.token)
    count = int(random.integers(1, size + 1))
    order = sorted(range(size), key=lambda i: (-logits[i], i))
    assert top_ids(logits, count, maxima=maxima).tolist() == top_ids(logits, count).tolist() == order[:count]


def test_any_number_is_drawn_from_its_place_however_few_are_looked_at():
    """Without filters too: the candidates that were looked at first give the token that all of them would give."""
    logits = (np.random.default_rng(2).standard_normal(5000) * 0.5).astype(np.float32)
    order = np.argsort(-logits, kind="stable")
    cumulated = np.cumsum(np.exp((logits[order] - logits.max()).astype(np.float64)))
    sampler = Sampler(SamplingParams(temperature=1.0, seed=1), [])
    for share in (0.0, 0.01, 0.3, 0.9, 0.999, 1 - 2**-53):
        sampler._next_number = share
        place = np.flatnonzero(order == sampler.choose(logits, maxima_of(logits, 128)).token)[0]
        assert abs(cumulated[place] / cumulated[-1] - share) < 2e-3


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}], ids=str)
def test_block_maxima_tell_of_logits_that_are_no_numbers(params):
    logits = np.zeros(300, np.float32)
    logits[200] = np.nan
    assert Sampler(SamplingParams(**params), []).choose(logits, maxima_of(logits, 128)) is None


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


@pytest.mark.parametrize("params", [{"temperature": 1.0, "seed": 4}, {"frequency_penalty": 2.0, "logit_bias": {3: 1.5}}], ids=str)
def test_a_fork_goes_its_own_way(params):
    """What a drafted token does to a fork is nothing to the sampler; both go on as one that never was forked."""
    logits = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    first, other = (Sampler(SamplingParams(**params), [3]) for _ in range(2))
    take(first, logits)
    take(other, logits)
    fork = first.fork()
    ahead = [take(fork, logits) for _ in range(5)]
    assert ahead == [take(first, logits) for _ in range(5)] == [take(other, logits) for _ in range(5)]
