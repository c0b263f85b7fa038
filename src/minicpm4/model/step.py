"""One step of the engine: everything that a forward pass needs to know about its tokens, complete when made.

`make_step` is the only maker. Planned by the engine, read by executors. Knows pages and rows; does not know tensors, requests or text.
"""

# T tokens in the step, S sequences in the step, P pages of the longest sequence, R rows that give logits

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np

PAGE_TOKENS = 64  # a page of the KV cache is a block of InfLLM v2
MAX_TREE_ROWS = 64  # bits of a mask of ancestors


def pages_for(num_tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-num_tokens // PAGE_TOKENS)


class Segment(NamedTuple):
    """What one sequence computes in a step.

    tokens: ids, at least one. start: tokens of the sequence that are cached already. pages: ids of its pages, in order, enough for all
    tokens. num_logits: so many of the last rows give logits. parents: None for tokens that follow each other; of a draft tree, the row of
    this segment that each row follows, -1 for the last cached token; a parent comes before its children, of at most 64 rows.
    numerics: 0, or an executor's own other way of rounding (`Executor.prompt_numerics`). adapter: of the weights, 0 for none.
    sequence: a number that no other sequence has, for executors that keep a cache for each sequence.
    """

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    num_logits: int = 1
    parents: Sequence[int] | None = None
    numerics: int = 0
    adapter: int = 0
    sequence: int = 0


@dataclass(frozen=True, eq=False)
class Step:
    """Tokens of several sequences in one ragged batch; all arrays are contiguous, int32 but for ancestors_T.

    tokens_T: token ids; the rows of one sequence are consecutive.
    starts_S1: rows [starts[s], starts[s + 1]) belong to sequence s.
    lengths_S: tokens of sequence s in the cache once this step is written: its rows are the last ones.
    pages_SP: page ids of each sequence in order; entries past its length are -1.
    logit_rows_R: the rows that give logits, ascending.
    numerics_S, adapters_S, ids_S: of each sequence; see `Segment` (ids_S: its `sequence`).
    ancestors_T: uint64, None where no sequence is a draft tree. Bit j of a row of a tree: row j of its sequence is on the path to it; its
    own bit is set. 0 for other rows, which see all tokens of their sequence up to their own.
    wants_hidden: whether the executor also returns what the head multiplies.
    """

    tokens_T: np.ndarray
    starts_S1: np.ndarray
    lengths_S: np.ndarray
    pages_SP: np.ndarray
    logit_rows_R: np.ndarray
    numerics_S: np.ndarray
    adapters_S: np.ndarray
    ids_S: np.ndarray
    ancestors_T: np.ndarray | None = None
    wants_hidden: bool = False

    @cached_property
    def sequences_T(self) -> np.ndarray:
        """The sequence, 0 to S - 1, that each row belongs to."""
        return np.repeat(np.arange(len(self.lengths_S), dtype=np.int32), np.diff(self.starts_S1))

    @cached_property
    def indices_T(self) -> np.ndarray:
        """Each row's place in the cache of its sequence, from 0."""
        lasts_S = self.lengths_S - self.starts_S1[1:]
        return np.arange(len(self.tokens_T), dtype=np.int32) + lasts_S[self.sequences_T]

    @cached_property
    def positions_T(self) -> np.ndarray:
        """Each row's position in its text, from 0: its place in the cache, or in a tree the number of tokens before it on its path."""
        if self.ancestors_T is None:
            return self.indices_T
        cached_T = (self.lengths_S - np.diff(self.starts_S1))[self.sequences_T]
        depths_T = bit_counts(self.ancestors_T) - 1
        return np.where(self.ancestors_T == 0, self.indices_T, cached_T + depths_T).astype(np.int32)

    @cached_property
    def slots_T(self) -> np.ndarray:
        """Where each row's key and value are written: page id * PAGE_TOKENS + offset in the page."""
        pages_T = self.pages_SP[self.sequences_T, self.indices_T // PAGE_TOKENS]
        return pages_T * np.int32(PAGE_TOKENS) + self.indices_T % PAGE_TOKENS

    def rows_of(self, sequence: int) -> slice:
        return slice(int(self.starts_S1[sequence]), int(self.starts_S1[sequence + 1]))

    def is_tree(self, sequence: int) -> bool:
        return self.ancestors_T is not None and bool(self.ancestors_T[self.starts_S1[sequence]])

    def path_of(self, row: int) -> np.ndarray:
        """The rows of the step on the path to a row of a tree, itself the last, ascending."""
        assert self.ancestors_T is not None, "the step has a tree"
        first = int(self.starts_S1[self.sequences_T[row]])
        return first + set_bits(int(self.ancestors_T[row]))


def make_step(segments: Sequence[Segment], *, wants_hidden: bool = False) -> Step:
    """The step that computes these segments. ValueError for a draft tree that is none."""
    counts = [len(segment.tokens) for segment in segments]
    ends = list(accumulate(counts))
    num_logits = [segment.num_logits for segment in segments]
    if max(counts, default=1) == 1:
        tokens_T = np.array([segment.tokens[0] for segment in segments], np.int32)
    else:
        tokens_T = np.concatenate([np.asarray(segment.tokens, np.int32) for segment in segments])
    tables = [np.asarray(segment.pages, np.int32) for segment in segments]
    pages_SP = np.full((len(tables), max((len(table) for table in tables), default=0)), -1, np.int32)
    for row, table in enumerate(tables):
        pages_SP[row, : len(table)] = table
    has_trees = any(segment.parents is not None for segment in segments)
    return Step(
        tokens_T=tokens_T,
        starts_S1=np.array([0, *ends], np.int32),
        lengths_S=np.array([segment.start + count for segment, count in zip(segments, counts, strict=True)], np.int32),
        pages_SP=pages_SP,
        logit_rows_R=np.array([row for end, n in zip(ends, num_logits, strict=True) for row in range(end - n, end)], np.int32),
        numerics_S=np.array([segment.numerics for segment in segments], np.int32),
        adapters_S=np.array([segment.adapter for segment in segments], np.int32),
        ids_S=np.array([segment.sequence for segment in segments], np.int32),
        ancestors_T=np.concatenate([ancestors_of(segment) for segment in segments]) if has_trees else None,
        wants_hidden=wants_hidden,
    )


def ancestors_of(segment: Segment) -> np.ndarray:
    """The segment's rows of `Step.ancestors_T`."""
    masks = np.zeros(len(segment.tokens), np.uint64)
    if segment.parents is None:
        return masks
    if len(segment.parents) != len(masks) or len(masks) > MAX_TREE_ROWS:
        raise ValueError(
            f"a draft tree has {len(masks)} rows and {len(segment.parents)} parents, expected as many, at most {MAX_TREE_ROWS}"
        )
    for row, parent in enumerate(segment.parents):
        if not -1 <= parent < row:
            raise ValueError(f"the parent of row {row} of a draft tree is {parent}, expected one of -1 to {row - 1}")
        masks[row] = (masks[parent] if parent >= 0 else np.uint64(0)) | np.uint64(1 << row)
    return masks


def single_step(
    tokens: Sequence[int] | np.ndarray, *, start: int = 0, num_logits: int = 1, numerics: int = 0, wants_hidden: bool = False
) -> Step:
    """A step of one sequence that owns pages 0, 1, 2 ...: tokens at positions start and after."""
    pages = range(pages_for(start + len(tokens)))
    return make_step(
        [Segment(tokens=tokens, start=start, pages=pages, num_logits=num_logits, numerics=numerics)],  # type: ignore[arg-type]
        wants_hidden=wants_hidden,
    )


def whole_pages_step(pages: np.ndarray) -> Step:
    """A step of one sequence that fills these pages, in their order, from position 0; no logits, tokens are 0."""
    return make_step([Segment(tokens=[0] * (len(pages) * PAGE_TOKENS), start=0, pages=pages, num_logits=0)])  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class StepLimits:
    """What an executor takes: the most rows of a step, pages of the cache, ids of the vocabulary, and the tags of numerics."""

    max_rows: int
    num_pages: int
    vocab_size: int
    numerics: Collection[int] = (0,)


def check_step(step: Step, limits: StepLimits) -> None:
    """ValueError for a step that would read or write where it must not; executors believe what passed."""
    counts_S = np.diff(step.starts_S1)
    num_rows = len(step.tokens_T)
    if num_rows > limits.max_rows or len(step.logit_rows_R) > limits.max_rows:
        raise ValueError(f"the step has {num_rows} rows, the executor takes {limits.max_rows}")
    sizes = {len(step.lengths_S), len(counts_S), len(step.pages_SP), len(step.numerics_S), len(step.adapters_S)}
    if len(sizes) != 1 or step.starts_S1[0] != 0 or step.starts_S1[-1] != num_rows or (counts_S < 0).any():
        raise ValueError("starts of sequences do not cover the rows, or arrays of sequences differ in length")
    if (counts_S > step.lengths_S).any() or (step.lengths_S > step.pages_SP.shape[1] * PAGE_TOKENS).any():
        raise ValueError("a sequence is shorter than its rows, or longer than its pages")
    used_SP = np.arange(step.pages_SP.shape[1]) < -(-step.lengths_S[:, None] // PAGE_TOKENS)
    checked = (
        ("a token is not in the vocabulary", step.tokens_T, limits.vocab_size),
        ("a page is not in the cache", step.pages_SP[used_SP], limits.num_pages),
        ("a row of logits is not in the step", step.logit_rows_R, num_rows),
    )
    for problem, values, limit in checked:
        if len(values) and not 0 <= values.min() <= values.max() < limit:
            raise ValueError(problem)
    if (np.diff(step.logit_rows_R) <= 0).any():
        raise ValueError("rows of logits do not ascend")
    if not set(step.numerics_S.tolist()) <= set(limits.numerics):
        raise ValueError(f"the executor has no numerics {step.numerics_S.tolist()}, expected some of {sorted(limits.numerics)}")
    if step.adapters_S.any():
        raise ValueError(f"the executor has no adapters, the step asks for {step.adapters_S.tolist()}")
    check_writers(step)
    if step.ancestors_T is not None:
        check_trees(step)


def check_writers(step: Step) -> None:
    """ValueError where two sequences write into one page."""
    pairs = np.unique(np.stack((step.slots_T // PAGE_TOKENS, step.sequences_T)), axis=1)
    if len(np.unique(pairs[0])) < pairs.shape[1]:
        raise ValueError("two sequences write into one page")


def check_trees(step: Step) -> None:
    assert step.ancestors_T is not None
    if step.ancestors_T.shape != step.tokens_T.shape or step.ancestors_T.dtype != np.uint64:
        raise ValueError("a step of trees has one uint64 mask of ancestors a row")
    for sequence in range(len(step.lengths_S)):
        masks = step.ancestors_T[step.rows_of(sequence)].tolist()
        if not any(masks):
            continue
        for row, mask in enumerate(masks):
            rest = mask & ~(1 << row)
            parent = rest.bit_length() - 1
            if row >= MAX_TREE_ROWS or not mask >> row & 1 or mask >> row > 1 or rest != (masks[parent] if parent >= 0 else 0):
                raise ValueError(f"row {row} of a draft tree has a mask of ancestors that is no path")


def set_bits(mask: int) -> np.ndarray:
    """The numbers of the bits that are set, ascending."""
    return np.flatnonzero(np.unpackbits(np.array([mask], "<u8").view(np.uint8), bitorder="little"))


def bit_counts(masks_T: np.ndarray) -> np.ndarray:
    """How many bits of each uint64 are set."""
    counts: np.ndarray = np.unpackbits(np.ascontiguousarray(masks_T)[:, None].view(np.uint8), axis=1).sum(axis=1, dtype=np.int32)
    return counts
