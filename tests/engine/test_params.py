"""SamplingParams refuses every value that cannot be, in one sentence."""

import numpy as np
import pytest

from minicpm4 import RequestError, SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0), ("max_tokens", 1.5), ("max_tokens", True),
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", "warm"),
        ("top_k", -1), ("top_p", 0), ("top_p", 1.1), ("min_p", -0.1), ("min_p", 2),
        ("seed", -1), ("seed", 1 << 64), ("repetition_penalty", 0), ("presence_penalty", 1e308), ("frequency_penalty", float("nan")),
        ("n", 0), ("n", 129), ("n", 1.0), ("logprobs", 65), ("logprobs", -1), ("logit_bias", {-1: 0.0}), ("logit_bias", {3: float("inf")}),
        ("stop", ("",)), ("stop", ("x" * 5000,)), ("stop", ("a",) * 65), ("stop", (3,)), ("stop_token_ids", (-1,)),
        ("stop", 5), ("stop", None), ("stop_token_ids", 5), ("logit_bias", [1]), ("logit_bias", None),
        ("max_tokens", np.float32(2)), ("top_k", np.True_), ("temperature", np.float64("nan")), ("seed", np.int64(-1)),
    ],
    ids=str,
)  # fmt: skip
def test_refuses(name, value):
    with pytest.raises(RequestError, match=r"expected|stop holds"):
        SamplingParams(**{name: value})


def test_accepts_the_edges():
    params = SamplingParams(max_tokens=1, temperature=0, top_k=0, top_p=1, min_p=1, seed=(1 << 64) - 1, logprobs=0, stop="end")
    assert params.stop == ("end",)
    assert params.replace(seed=None).seed is None
    with pytest.raises(TypeError):
        params.replace(warmth=1)


def test_each_sample_can_be_asked_for_alone():
    params = SamplingParams(n=3, seed=(1 << 64) - 2, temperature=0.5)
    assert [(one.n, one.seed, one.temperature) for one in params.samples] == [(1, (1 << 64) - 2, 0.5), (1, (1 << 64) - 1, 0.5), (1, 0, 0.5)]
    assert [one.seed for one in SamplingParams(n=2).samples] == [None, None]
    assert SamplingParams(seed=np.uint64((1 << 64) - 1), n=2).samples[1].seed == 0


def test_accepts_the_numbers_of_numpy():
    params = SamplingParams(
        max_tokens=np.int64(2), temperature=np.float32(0.5), top_k=np.uint8(3), seed=np.uint64((1 << 64) - 1),
        logit_bias={np.int32(1): np.float16(2)}, stop_token_ids=np.array([4, 5]),
    )  # fmt: skip
    assert params.stop_token_ids == (4, 5)
