"""The example of long context: what is asked was told, a few steps lower the loss, attention switches over the same parameters, a run
that was stopped goes on to the same bytes.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.long_context.evaluation import evaluate
from examples.long_context.model import initial_parameters, logits_of, small_config
from examples.long_context.run import LONG, STAGES
from examples.long_context.run import SPARSE as PUBLISHED_SPARSE
from examples.long_context.task import BEGIN, FILLER, SYMBOLS, Batch, Task, make_batch
from examples.long_context.training import CHECKPOINT, LOG, Stage, make_optimizer, rate_factor, train, train_step
from minicpm4.errors import ConfigError
from minicpm4.model.config import SparseConfig

CONFIG = small_config(width=64, context_length=256)
TASK = Task(256, facts=8, runs=2, run_length=6, times=4)
SPARSE = SparseConfig(window_size=64, topk=2, dense_len=0)
TOY_TASKS = (Task(32, facts=3, runs=1, run_length=8, times=1),)
STAGE = Stage("toy", TOY_TASKS, None, None, steps=12, tokens=256, rate=0.01, warmup=2, decay=4, save_every=4)


def test_what_is_asked_was_told_far_before() -> None:
    batch = make_batch(TASK, 3, seed=[0])
    tokens = batch.tokens_BT.reshape(-1)
    assert len(batch.asked_R) == 3 * (8 + 2 * 5)
    for row, answer in zip(batch.asked_R, batch.answers_R, strict=True):
        sequence, place = divmod(int(row), TASK.length)
        told = batch.tokens_BT[sequence, : TASK.length // 2]
        found = np.flatnonzero(told == tokens[row])
        assert len(found) == 4
        assert {*told[found + 1]} == {answer}
        assert answer == batch.tokens_BT[sequence, place + 1]
        assert place >= TASK.length // 2
    assert batch.is_copy_R.sum() == 3 * 2 * 5
    assert set(tokens) <= {BEGIN, *FILLER, *SYMBOLS}
    np.testing.assert_array_equal(make_batch(TASK, 3, seed=[0]).tokens_BT, batch.tokens_BT)


@pytest.mark.parametrize("sparse", [None, SPARSE], ids=["dense", "sparse"])
def test_a_few_steps_lower_the_loss(sparse: SparseConfig | None, tmp_path: Path) -> None:
    parameters = initial_parameters(CONFIG, seed=0)
    stage = replace(STAGE, tasks=TOY_TASKS if sparse is None else (TASK,), sparse=sparse)
    train(CONFIG, stage, parameters, seed=0, folder=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(12))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.2


def test_dense_and_sparse_switch_over_the_same_parameters() -> None:
    parameters = initial_parameters(CONFIG, seed=0)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    tokens_BT, rows_R = make_batch(TASK, 1, seed=[0]).tokens_BT, np.arange(128, 256)

    def logits(rule: SparseConfig | None) -> torch.Tensor:
        return logits_of(CONFIG, parameters, tokens_BT, rows_R=rows_R, sparse=rule).detach()

    dense, sparse, again, everything = (logits(rule) for rule in (None, SPARSE, None, SparseConfig(dense_len=0)))
    assert all(torch.equal(parameters[name], value) for name, value in before.items())
    assert torch.equal(dense, again)
    assert (dense - sparse).abs().max() > 1e-4
    torch.testing.assert_close(everything, dense, rtol=0, atol=1e-5)  # all blocks seen: another order of the same sums


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped = initial_parameters(CONFIG, seed=0), initial_parameters(CONFIG, seed=0)
    train(CONFIG, STAGE, whole, seed=0, folder=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("examples.long_context.training.rate_factor", lambda stage, step: rate_factor(stage, step) if step < 10 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(CONFIG, STAGE, stopped, seed=0, folder=tmp_path / "stopped")
    resumed = initial_parameters(CONFIG, seed=1)  # what is in memory does not matter
    train(CONFIG, STAGE, resumed, seed=0, folder=tmp_path / "stopped")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    losses = [[json.loads(line)["loss"] for line in (tmp_path / name / LOG).read_text().splitlines()] for name in ("whole", "stopped")]
    assert losses[0] == losses[1]
    with pytest.raises(ConfigError, match="another recipe"):
        train(CONFIG, replace(STAGE, rate=0.02), resumed, seed=0, folder=tmp_path / "stopped")


def test_every_token_is_trained_on_and_answers_are_logged() -> None:
    parameters = initial_parameters(CONFIG, seed=0)
    batch = make_batch(TOY_TASKS[0], 8, seed=[0, 32, 0])
    with torch.no_grad():
        logits_RV = logits_of(CONFIG, parameters, batch.tokens_BT, rows_R=np.arange(256), sparse=None)
    log_probabilities_BTV = logits_RV.log_softmax(dim=-1).reshape(8, 32, -1)
    losses_BT = -log_probabilities_BTV[:, :-1].gather(-1, torch.from_numpy(batch.tokens_BT)[:, 1:, None])[..., 0]
    row = train_step(CONFIG, STAGE, parameters, optimizer=make_optimizer(CONFIG, parameters, STAGE.rate), seed=0, step=0)
    assert row["loss"] == pytest.approx(losses_BT.mean().item(), rel=1e-5)
    assert row["answers_loss"] == pytest.approx(losses_BT[divmod(batch.asked_R, 32)].mean().item(), rel=1e-5)


def test_checkpoints_hold_nothing_but_data(tmp_path: Path) -> None:
    train(CONFIG, STAGE, initial_parameters(CONFIG, seed=0), seed=0, folder=tmp_path)
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert saved["step"] == STAGE.steps
    assert not (tmp_path / f"{CHECKPOINT}.partial").exists()


def test_the_rate_warms_up_stays_and_decays() -> None:
    rates = [rate_factor(STAGE, step) for step in range(STAGE.steps)]
    assert rates[:3] == [0.5, 1, 1]
    assert rates[7] == 1 > rates[8] > rates[9] > rates[10] > rates[11] == pytest.approx(0.05)


def test_what_is_compared_differs_in_attention_alone() -> None:
    """Also: every stage begins with the weights of an earlier one."""
    dense, sparse = (stage for stage in STAGES if LONG in stage.tasks)
    assert replace(dense, name=sparse.name, sparse=PUBLISHED_SPARSE) == sparse
    for index, stage in enumerate(STAGES):
        assert stage.start in (None, *(earlier.name for earlier in STAGES[:index]))


def test_steps_take_tasks_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(task: Task, size: int, *, seed: Sequence[int]) -> Batch:
        asked.append((task.length, size, seed))
        raise ZeroDivisionError

    monkeypatch.setattr("examples.long_context.training.make_batch", refuse)
    stage = replace(STAGE, tasks=(*TOY_TASKS, TASK))
    for step in range(3):
        with pytest.raises(ZeroDivisionError):
            train_step(CONFIG, stage, {}, optimizer=None, seed=7, step=step)  # type: ignore[arg-type]
    assert asked == [(32, 8, [7, 32, 0]), (256, 1, [7, 256, 1]), (32, 8, [7, 32, 2])]


def test_an_untrained_model_guesses() -> None:
    score = evaluate(CONFIG, initial_parameters(CONFIG, seed=0), TASK, sparse=None, num_sequences=4)
    assert score.loss == pytest.approx(np.log(CONFIG.vocab_size), abs=0.5)
    assert score.retrieval < 0.2
    assert score.copy < 0.2
