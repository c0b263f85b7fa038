"""RULER-like tasks through the public interface: lengths x depths x samples, greedy, scored by string match, resumable.

Six tasks are RULER's own (niah_single_1, niah_multikey_2, niah_multikey_3, vt, cwe, fwe); the five that hide needles in essays take
any prose. Where it differs: prompts are filled to the token, and a needle can be put at a given depth instead of anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from statistics import fmean
from typing import Any

from minicpm4.engine import LLM, Completion, LoadOptions, SamplingParams
from minicpm4.engine.answer import check_numbers
from minicpm4.errors import CapacityError, ConfigError
from minicpm4.evaluate.aggregation import AGGREGATION_TASKS
from minicpm4.evaluate.needles import NEEDLE_TASKS
from minicpm4.evaluate.prose import Text, read_text
from minicpm4.evaluate.puzzle import share_found
from minicpm4.evaluate.recipe import digest, recipe_of, settings_of
from minicpm4.evaluate.samples import Cell, Frame, Sample, check_prose, frame_of, make_sample
from minicpm4.records import Journal

Progress = Callable[[str, int, int], None]
TASKS = {task.name: task for task in (*NEEDLE_TASKS, *AGGREGATION_TASKS)}
EXACT_TASKS = tuple(name for name, task in TASKS.items() if not task.needs_prose)
MAX_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class NeedleOptions:
    """tasks: names of TASKS. lengths: tokens of prompt and answer together. depths: where to hide one needle, in percent; none of them
    for anywhere, as RULER does. samples: of each cell. seed: of all random numbers. is_plain: without the chat template.
    prose: for the tasks that hide needles in it."""

    tasks: tuple[str, ...] = EXACT_TASKS
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    depths: tuple[float, ...] = (0, 25, 50, 75, 100)
    samples: int = 5
    seed: int = 0
    is_plain: bool = False
    prose: Text | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.tasks if name not in TASKS]
        if unknown or not self.tasks:
            raise ConfigError(f"there is no task {', '.join(unknown) or 'asked for'}", hint=f"choose of {', '.join(TASKS)}")
        if not self.lengths or min(self.lengths) < 1 or self.samples < 1:
            raise ConfigError(f"lengths are {self.lengths}, samples {self.samples}, expected positive numbers", hint="correct them")
        if not all(0 <= depth <= 100 for depth in self.depths):
            raise ConfigError(f"depths are {self.depths}, expected percentages", hint="give numbers from 0 to 100, or any")

    @property
    def cells(self) -> list[Cell]:
        """Length by length, task by task."""
        return [
            Cell(name, length, depth)
            for length, name in product(self.lengths, self.tasks)
            for depth in ((self.depths or (None,)) if TASKS[name].has_depth else (None,))
        ]

    @property
    def words(self) -> list[str]:
        """The flags that ask for these options."""
        listed = {"tasks": self.tasks, "lengths": self.lengths, "depths": [f"{depth:g}" for depth in self.depths] or ["any"]}
        words = [word for name, values in listed.items() for word in (f"--{name}", ",".join(map(str, values)))]
        words += ["--samples", str(self.samples), "--seed", str(self.seed)]
        return words + (["--plain"] if self.is_plain else []) + ([] if self.prose is None else ["--prose", self.prose.name])


@dataclass(frozen=True)
class CellScore:
    """score: the mean share of answers that were found, in percent. attended_share: mean, of the rows that chose the tokens."""

    task: str
    length: int
    depth: float | None
    samples: int
    score: float
    attended_share: float


@dataclass(frozen=True)
class NeedleResult:
    """recipe: what is needed to run it again. cells: in the order asked for. samples: each with its answer and its score."""

    recipe: dict[str, Any]
    cells: tuple[CellScore, ...]
    samples: tuple[dict[str, Any], ...]

    def as_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    def mean(self, task: str | None, length: int) -> float:
        """Of a task's cells, or of all tasks', each task counting the same."""
        names = dict.fromkeys(cell.task for cell in self.cells) if task is None else (task,)
        return fmean(fmean(cell.score for cell in self.cells if (cell.task, cell.length) == (name, length)) for name in names)

    def attended(self, length: int) -> float:
        return fmean(cell.attended_share for cell in self.cells if cell.length == length)


def run_needle(llm: LLM, options: NeedleOptions, *, load: LoadOptions, journal: Callable[..., Journal], progress: Progress) -> NeedleResult:
    """load: what the LLM was made with. journal: given the settings, the journal to go on with. progress: told (what, done, of all)."""
    room = llm.loaded.limits.sequence_tokens
    if max(options.lengths) > room:
        raise CapacityError(f"a length of {max(options.lengths)} is more than the context of {room}", hint="lower --lengths, or raise -c")
    prose = read_text(None) if options.prose is None else options.prose
    frame = frame_of(llm, is_plain=options.is_plain)
    settings = settings_of(llm, seed=options.seed, prose=digest(prose.text), frame=[frame.before, frame.after])
    done = journal(settings)
    if any(TASKS[name].needs_prose for name in options.tasks):
        check_prose(llm, prose.text, name=prose.name)
    wanted = [(cell, index) for index in range(options.samples) for cell in options.cells]
    missing = [(cell, index) for cell, index in wanted if cell.key(index) not in done.records]
    progress("samples", len(wanted) - len(missing), len(wanted))
    for batch in batches(missing, tokens=llm.loaded.memory.cache_tokens):
        for record in answer_batch(llm, batch, seed=options.seed, frame=frame, sentences=prose.sentences):
            done.add(record)
        progress("samples", sum(cell.key(index) in done.records for cell, index in wanted), len(wanted))
    return NeedleResult(
        recipe=recipe_of(llm, load, words=["needle", *options.words], settings=settings),
        cells=tuple(score_of(cell, [done.records[cell.key(index)] for index in range(options.samples)]) for cell in options.cells),
        samples=tuple(done.records[cell.key(index)] for cell, index in wanted),
    )


def batches(missing: Sequence[tuple[Cell, int]], *, tokens: int) -> Iterator[list[tuple[Cell, int]]]:
    """Neighbours of one length, as many as the cache holds together."""
    batch = list[tuple[Cell, int]]()
    for cell, index in missing:
        is_full = len(batch) == MAX_BATCH or (len(batch) + 1) * cell.length > tokens
        if batch and (is_full or batch[0][0].length != cell.length):
            yield batch
            batch = []
        batch.append((cell, index))
    if batch:
        yield batch


def answer_batch(
    llm: LLM, batch: Sequence[tuple[Cell, int]], *, seed: int, frame: Frame, sentences: tuple[str, ...]
) -> list[dict[str, Any]]:
    """A record of each sample. CheckpointError where the model's arithmetic breaks."""
    tasks = [TASKS[cell.task] for cell, _ in batch]
    samples = [
        make_sample(llm, task, cell=cell, index=index, seed=seed, frame=frame, sentences=sentences)
        for task, (cell, index) in zip(tasks, batch, strict=True)
    ]
    completions = llm.generate([sample.prompt for sample in samples], [SamplingParams(max_tokens=task.max_new_tokens) for task in tasks])
    return [record_of(sample, completion) for sample, completion in zip(samples, completions, strict=True)]


def record_of(sample: Sample, completion: Completion) -> dict[str, Any]:
    check_numbers(completion)
    return {
        "key": sample.key,
        "size": sample.size,
        "depth": sample.puzzle.depth,
        "prompt": digest(sample.prompt),
        "prompt_tokens": sample.num_tokens,
        "answers": list(sample.puzzle.answers),
        "text": completion.text,
        "score": share_found(completion.text, sample.puzzle.answers),
        "finish_reason": completion.finish_reason,
        "answer_tokens": len(completion.token_ids),
        "attended_share": completion.attended_share,
        "prefill_seconds": completion.prefill_seconds,
        "decode_seconds": completion.decode_seconds,
    }


def score_of(cell: Cell, records: Sequence[dict[str, Any]]) -> CellScore:
    score, attended = (fmean(record[name] for record in records) for name in ("score", "attended_share"))
    return CellScore(cell.task, cell.length, cell.depth, len(records), 100 * score, attended)
