"""What a step of the engine costs in Python: python -m benchmarks.step_overhead

An executor that computes nothing: only planning, making the step, sampling and committing are timed, in microseconds of CPU time a step
while so many streams decode; the median of several runs.
"""

from __future__ import annotations

import json
import time
from statistics import median

import numpy as np

from benchmarks.recipe import machine_facts
from minicpm4 import SamplingParams
from minicpm4.engine.engine import Engine
from minicpm4.engine.limits import Limits
from minicpm4.executors import StepResult
from minicpm4.model import Step

VOCAB_SIZE, STEPS, RUNS = 512, 600, 7
CASES = ((1, 100), (16, 100), (1, 8000), (16, 2000))  # streams, and tokens of each one's prompt


class Idle:
    """Gives every row the same logits."""

    name, choices, warnings = "idle", (), ()
    weight_bytes = kv_bytes = prompt_numerics = 0

    def __init__(self) -> None:
        self.logits = np.zeros((64, VOCAB_SIZE), np.float32)

    def run(self, step: Step) -> StepResult:
        return StepResult(self.logits[: len(step.logit_rows_R)])

    def copy_pages(self, sources: np.ndarray, targets: np.ndarray) -> None: ...
    def copy_slots(self, pages: np.ndarray, *, start: int, rows: np.ndarray) -> None: ...
    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None: ...
    def close(self) -> None: ...


def microseconds_a_step(streams: int, prompt_tokens: int) -> float:
    engine = Engine(Idle(), Limits(VOCAB_SIZE, frozenset(), 1 << 20, num_pages=40_000, max_step_tokens=512))
    for stream in range(streams):
        engine.add([stream] * prompt_tokens, SamplingParams(max_tokens=4 * STEPS))
    while len(engine.step()) < streams:
        """Prompts are computed."""
    start = time.process_time()
    for _ in range(STEPS):
        engine.step()
    return 1e6 * (time.process_time() - start) / STEPS


def main() -> None:
    rows = [
        {"streams": streams, "prompt_tokens": tokens, "us_a_step": median(microseconds_a_step(streams, tokens) for _ in range(RUNS))}
        for streams, tokens in CASES
    ]
    print(json.dumps({"recipe": machine_facts(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
