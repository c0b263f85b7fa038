"""What can be said of the Ascend's table without the device: its graphs, run line by line in float32 with stand-ins for the fused
operations, which are written from their documentation, compute what the reference does. Not that the device's operations do as documented.
"""

from collections.abc import Sequence

import numpy as np
import pytest

from minicpm4.executors import Executor
from minicpm4.model import Step
from tests.toy import plan_step, toy_config, toy_executor, toy_weights

pytestmark = pytest.mark.mindspore
CONFIG = toy_config(hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=16)


def prompt(length: int, *, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 96, length).tolist()


def attend(q_THD: np.ndarray, k_SGD: np.ndarray, v_SGD: np.ndarray, *, scale: float, hidden_TS: np.ndarray) -> np.ndarray:
    """[T, H, D]; hidden_TS: where a row does not attend to another."""
    k_SHD, v_SHD = (np.repeat(x, q_THD.shape[1] // x.shape[1], axis=1) for x in (k_SGD, v_SGD))
    scores_HTS = np.where(hidden_TS, -np.inf, scale * np.einsum("thd,shd->hts", q_THD, k_SHD))
    weights_HTS = np.exp(scores_HTS - scores_HTS.max(-1, keepdims=True))
    return np.einsum("hts,shd->thd", weights_HTS / weights_HTS.sum(-1, keepdims=True), v_SHD).astype(np.float32)


class StandIns:
    """Of operations that MindSpore has on Ascend alone, on a CPU; calls: their names in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import mindspore as ms
        from mindspore import ops

        from minicpm4.executors.mindspore import ascend

        self.calls: list[str] = []
        self.tensor = ms.Tensor
        monkeypatch.setattr(ms, "jit", lambda function: function)
        monkeypatch.setattr(ops, "RmsNorm", self.rms_norm)
        monkeypatch.setattr(ops, "PagedAttention", self.paged_attention)
        for name, value in {
            "DTYPE": ms.float32,
            "use_ascend": lambda: None,
            "STORE": self.store,
            "SWIGLU": self.swiglu,
            "FlashAttentionScore": self.flash_attention,
        }.items():
            monkeypatch.setattr(ascend, name, value)

    def rms_norm(self, eps: float):
        def run(x_TK, weight_K):
            x = x_TK.asnumpy()
            factor = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps))
            return self.tensor(x * factor * weight_K.asnumpy()), self.tensor(factor)

        return run

    def swiglu(self, joined_TK, axis):
        gate, up = np.split(joined_TK.asnumpy(), 2, axis=axis)
        return self.tensor(gate / (1 + np.exp(-gate)) * up)

    def store(self, keys_TGD, values_TGD, key_pages, value_pages, slots_T):
        self.calls.append("store")
        for new, pages in ((keys_TGD, key_pages), (values_TGD, value_pages)):
            array = pages.asnumpy().copy()
            array.reshape(-1, *array.shape[2:])[slots_T.asnumpy()] = new.asnumpy()
            pages.set_data(self.tensor(array))

    def paged_attention(self, num_heads: int, scale: float, num_kv_heads: int):
        def run(q_THD, key_pages, value_pages, pages_TW, lengths_T, *unused):
            self.calls.append("paged")
            assert q_THD.shape[1] == num_heads
            assert key_pages.shape[2] == num_kv_heads
            assert unused == (None,) * 4
            out = []
            for q_HD, pages_W, length in zip(q_THD.asnumpy(), pages_TW.asnumpy(), lengths_T.asnumpy(), strict=True):
                keys, values = (p.asnumpy()[pages_W].reshape(-1, *p.shape[2:])[:length] for p in (key_pages, value_pages))
                out.append(attend(q_HD[None], keys, values, scale=scale, hidden_TS=np.zeros((1, length), bool))[0])
            return self.tensor(np.stack(out))

        return run

    def flash_attention(self, *, head_num: int, scale_value: float, input_layout: str):
        assert input_layout == "BSH"

        def run(q_1TK, k_1TK, v_1TK, *unused_and_hidden):
            self.calls.append("flash")
            *unused, hidden_TT = unused_and_hidden
            assert unused == [None] * 3
            head_dim = q_1TK.shape[2] // head_num
            q, k, v = (x.asnumpy()[0].reshape(x.shape[1], -1, head_dim) for x in (q_1TK, k_1TK, v_1TK))
            out = attend(q, k, v, scale=scale_value, hidden_TS=hidden_TT.asnumpy())
            return None, None, None, self.tensor(out.reshape(q_1TK.shape))

        return run


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> StandIns:
    return StandIns(monkeypatch)


def run_both(steps: Sequence[Step]) -> tuple[Executor, list[np.ndarray], list[np.ndarray]]:
    weights = toy_weights(CONFIG)
    ascend = toy_executor("mindspore", CONFIG, weights, device="ascend", kv_format="bf16", max_step_tokens=64)
    reference = toy_executor("reference", CONFIG, weights)
    got, wanted = ([runner.run(step).logits.copy() for step in steps] for runner in (ascend, reference))
    return ascend, got, wanted


PROMPTS = plan_step([(prompt(21), 0, [3]), (prompt(9, seed=1), 0, [5])])
DECODING = plan_step([([7], 21, [3]), ([8], 9, [5])])
LATER_CHUNK = plan_step([(prompt(50, seed=2), 21, [3, 7]), ([9], 9, [5])])


@pytest.mark.parametrize(
    ("steps", "attention"),
    [
        ([PROMPTS], ["flash"]),
        ([PROMPTS, DECODING], ["flash", "paged"]),
        ([PROMPTS, LATER_CHUNK], ["flash", "paged"]),
        ([plan_step([([5], 0, [2])])], ["paged"]),
    ],
    ids=["prompts", "decoding", "a later chunk", "one token"],
)
def test_with_stand_ins_the_graphs_compute_as_the_reference(stand_ins: StandIns, steps: list[Step], attention: list[str]) -> None:
    _, got, wanted = run_both(steps)
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert stand_ins.calls == [call for name in attention for call in ["store", name] * CONFIG.num_layers]


def test_prompts_and_chunks_of_one_size_are_two_graphs_and_a_second_prompt_none(stand_ins: StandIns) -> None:
    runner, _, _ = run_both([PROMPTS, plan_step([(prompt(30), 21, [3])]), plan_step([(prompt(40), 0, [1])], wants_all=False), PROMPTS])
    assert runner.sizes == [(64, 64), (64, 64), (64, 1)]


def test_pages_are_copied(stand_ins: StandIns) -> None:
    weights = toy_weights(CONFIG)
    runner = toy_executor("mindspore", CONFIG, weights, device="ascend", kv_format="bf16")
    runner.run(plan_step([(prompt(20), 0, [2])]))
    runner.copy_pages(np.array([2], np.int32), np.array([6], np.int32))
    first, second = (runner.run(plan_step([([4], 20, [page])])).logits.copy() for page in (2, 6))
    np.testing.assert_array_equal(first, second)
