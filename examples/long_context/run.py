"""Trains at short length, goes on at longer length densely and sparsely, compares: python -m examples.long_context.run

Every seed trains three stages; `short`, and from its weights `long dense` and `long sparse` over the same batches. Each stage's
weights are then read by dense and by sparse attention. What was finished stays in --folder: a run that was stopped goes on. Writes
<output>.json and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.recipe import machine_facts
from benchmarks.timing import table_of
from examples.long_context.evaluation import Score, evaluate
from examples.long_context.model import Parameters, initial_parameters, small_config
from examples.long_context.task import Task
from examples.long_context.training import LOG, Stage, train
from minicpm4.errors import MiniCPMError
from minicpm4.model import ModelConfig
from minicpm4.model.config import SparseConfig
from minicpm4.model.sparse import count_attended

SPARSE = SparseConfig(window_size=64, topk=4, dense_len=0)
NO_CHOICE = SparseConfig(window_size=64, topk=1, dense_len=0)  # the first block and the window: what sparse attention sees unchosen
WARM, WARMER = Task(32, facts=3, runs=1, run_length=8, times=1), Task(64, facts=7, runs=1, run_length=14, times=1)
SHORT = Task(256, facts=20, runs=3, run_length=8, times=1)
LONG = Task(1024, facts=12, runs=2, run_length=8, times=2)
MIXED = (  # as many tokens of each length, as the paper of InfLLM v2 has it
    Task(256, facts=3, runs=1, run_length=8, times=2),
    Task(512, facts=6, runs=1, run_length=8, times=2),
    Task(768, facts=9, runs=1, run_length=8, times=2),
    LONG,
)
STAGES = (  # short sequences first: what points at the right token is as faint as a sequence is long
    Stage("32", (WARM,), None, None, steps=400, tokens=1024, rate=0.005, warmup=20, decay=40),
    Stage("64", (WARMER,), "32", None, steps=20, tokens=1024, rate=0.005, warmup=5, decay=10),
    Stage("short", (SHORT,), "64", None, steps=60, tokens=4096, rate=0.005, warmup=5, decay=20, save_every=20),
    Stage("long dense", MIXED, "short", None, steps=240, tokens=4096, rate=0.004, warmup=5, decay=120, save_every=20),
    Stage("long sparse", MIXED, "short", SPARSE, steps=240, tokens=4096, rate=0.004, warmup=5, decay=120, save_every=20),
)
ATTENTION = {"dense": None, "sparse": SPARSE, "sparse, no choice": NO_CHOICE}
ROWS = (  # what is compared: weights, task, attention
    ("short", SHORT, "dense"),
    *(("short", LONG, name) for name in ATTENTION),
    *(("long dense", LONG, name) for name in ATTENTION),
    *(("long sparse", LONG, name) for name in ATTENTION),
)
NUM_EVALUATED = 16  # sequences
MEASURES = {"loss": 1, "retrieval": 100, "copy": 100}
HEADER = ("trained", "tokens", "attention", "of the tokens before an answer, attended to", "loss, nats", "retrieval, %", "copy, %")


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse(arguments)
    torch.set_num_threads(chosen.threads)
    config = small_config()
    try:
        seeds = [run_seed(config, seed, folder=chosen.folder / f"seed-{seed}") for seed in chosen.seeds]
    except MiniCPMError as error:
        print(error, file=sys.stderr)
        return 1
    result = {**machine_facts(), "threads": chosen.threads, "config": asdict(config), "stages": [asdict(s) for s in STAGES], "seeds": seeds}
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    chosen.output.with_suffix(".md").write_text(page_of(result))
    print(page_of(result))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("build/long_context"), help="checkpoints and logs of what was done")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results"), help="without a suffix")
    return parser.parse_args(arguments)


def run_seed(config: ModelConfig, seed: int, *, folder: Path) -> dict[str, Any]:
    """All stages and all comparisons of a seed; `seconds` are what the stages' steps took of a processor, over all sittings."""
    weights: dict[str, Parameters] = {}
    for stage in STAGES:
        parameters = copy_of(weights[stage.start]) if stage.start else initial_parameters(config, seed=seed)
        train(config, stage, parameters, seed=seed, folder=folder / stage.name)
        weights[stage.name] = parameters
    scores = [asdict(score_row(config, weights[name], task=task, attention=attention)) for name, task, attention in ROWS]
    seconds = {stage.name: sum(row["seconds"] for row in read_log(folder / stage.name / LOG)) for stage in STAGES}
    return {"seed": seed, "seconds": seconds, "scores": scores}


def copy_of(parameters: Parameters) -> Parameters:
    return {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}


def score_row(config: ModelConfig, parameters: Parameters, *, task: Task, attention: str) -> Score:
    return evaluate(config, parameters, task, sparse=ATTENTION[attention], num_sequences=NUM_EVALUATED)


def read_log(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def page_of(result: Mapping[str, Any]) -> str:
    """The table: means over seeds, with the least and the most."""
    seeds = result["seeds"]
    rows = []
    for index, (weights, task, attention) in enumerate(ROWS):
        share = count_attended(ATTENTION[attention], np.arange(task.length // 2, task.length)).share
        scores = [seed["scores"][index] for seed in seeds]
        columns = [spread_of([score[name] for score in scores], factor=factor) for name, factor in MEASURES.items()]
        rows.append([weights, str(task.length), attention, f"{100 * share:.0f} %", *columns])
    minutes = [sum(seed["seconds"].values()) / 60 for seed in seeds]
    about = (
        f"{result['machine']}, {result['threads']} thread, commit {result['commit']}; seeds {', '.join(str(s['seed']) for s in seeds)}, "
        f"{min(minutes):.1f} to {max(minutes):.1f} processor minutes of training each.\n"
        f"Means over seeds, with the least and the most; {NUM_EVALUATED} sequences that no batch held.\n\n"
    )
    return about + table_of(HEADER, rows)


def spread_of(values: Sequence[float], *, factor: float) -> str:
    mean, least, most = (factor * value for value in (statistics.mean(values), min(values), max(values)))
    digits = 1 if factor == 100 else 2
    return f"{mean:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
