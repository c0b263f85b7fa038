"""Random steps, right and wrong, thrown at every executor: refused by name, or computed as the reference computes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.executors import Executor
from minicpm4.model import Segment, Step, make_step, pages_for
from minicpm4.model.config import SparseConfig
from tests.toy import NAMES, TOY, toy_executor, toy_weights

NUM_PAGES, MAX_ROWS = 12, 40
SPARSE = SparseConfig(topk=1, init_blocks=1, window_size=64, dense_len=100)
ARRAYS = ("tokens_T", "starts_S1", "lengths_S", "pages_SP", "logit_rows_R", "numerics_S", "adapters_S", "ancestors_T")
OTHER_VALUES = (-(2**31), -1, 0, 1, 2, 11, 12, 63, 64, 96, 97, 2**31 - 1)


def random_step(random: np.random.Generator) -> Step:
    """Up to three sequences on pages of their own, chains and trees."""
    pages, segments = random.permutation(NUM_PAGES).tolist(), []
    for _ in range(int(random.integers(1, 4))):
        start, count = int(random.integers(0, 120)), int(random.integers(1, 13))
        own, pages = pages[: pages_for(start + count)], pages[pages_for(start + count) :]
        parents = [int(random.integers(-1, row)) for row in range(1, count)] if random.random() < 0.5 else None
        segments.append(
            Segment(
                tokens=random.integers(0, 97, count).tolist(),
                start=start,
                pages=own,
                num_logits=int(random.integers(0, count + 1)),
                parents=None if parents is None else [-1, *parents],
            )
        )
    return make_step(segments)


def spoiled(step: Step, random: np.random.Generator) -> Step:
    """One number of one array is another, or an array is shorter."""
    name = ARRAYS[random.integers(len(ARRAYS))]
    array = getattr(step, name)
    if array is None or not array.size:
        return step
    array = array.copy()
    if random.random() < 0.15:
        return replace(step, **{name: np.ascontiguousarray(array[:-1])})
    place = int(random.integers(array.size))
    value = OTHER_VALUES[random.integers(len(OTHER_VALUES))]
    array.reshape(-1)[place] = np.uint64(random.integers(0, 1 << 14)) if name == "ancestors_T" else value
    return replace(step, **{name: array})


def result_of(executor: Executor, step: Step) -> np.ndarray | None:
    """Logits; None for a step that is refused."""
    try:
        return executor.run(step).logits.copy()
    except ValueError:
        return None


@pytest.fixture(scope="module", params=["dense", "sparse"])
def sparse(request: pytest.FixtureRequest) -> SparseConfig | None:
    return SPARSE if request.param == "sparse" else None


@pytest.mark.parametrize("name", [name for name in NAMES if name != "reference"])
def test_a_step_is_refused_or_computed(name: str, sparse: SparseConfig | None) -> None:
    options = {"num_pages": NUM_PAGES, "max_step_tokens": MAX_ROWS, "sparse": sparse, "threads": 1}
    executor, reference = (toy_executor(each, TOY, toy_weights(TOY), **options) for each in (name, "reference"))
    seen = {"refused": 0, "computed": 0}

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 2**32), st.booleans())
    def check(seed: int, is_wrong: bool) -> None:
        random = np.random.default_rng(seed)
        step = random_step(random)
        for each in (executor, reference):
            compute_prefixes(each, step)
        right, step = step, spoiled(step, random) if is_wrong else step
        wanted, got = result_of(reference, step), result_of(executor, step)
        assert (got is None) == (wanted is None), "an executor refuses what the reference refuses, and nothing else"
        assert wanted is not None or is_wrong
        seen["refused" if wanted is None else "computed"] += 1
        reads_the_same = all(np.array_equal(getattr(step, name), getattr(right, name)) for name in ("starts_S1", "lengths_S", "pages_SP"))
        if wanted is not None and got is not None and reads_the_same:
            np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-5)

    check()
    assert min(seen.values()) > 5


def compute_prefixes(executor: Executor, step: Step) -> None:
    """What the step's sequences have in the cache."""
    for sequence, length in enumerate(step.lengths_S.tolist()):
        rows, pages = step.rows_of(sequence), step.pages_SP[sequence].tolist()
        end = length - (rows.stop - rows.start)
        for first in range(0, end, MAX_ROWS):
            tokens = [(7 * index) % 97 for index in range(first, min(end, first + MAX_ROWS))]
            executor.run(make_step([Segment(tokens=tokens, start=first, pages=pages, num_logits=0)]))
