"""Draft trees for executors whose attention sees tokens in a row only: each path of a tree runs as a sequence of its own.

A path runs on the tree's own pages from the tree's start on, over what the path before it wrote. So a row gets exactly what its path alone
gets, a step with a tree takes as many steps as the tree has leaves, and the path that is kept runs once more. Knows no executor.
"""

# R rows of logits

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

import numpy as np

from minicpm4.model import Segment, Step, make_step, pages_for
from minicpm4.model.linear_step import leaves_of


def path_steps(step: Step) -> list[tuple[Step, np.ndarray]]:
    """Steps without trees that give the same logits together, and of each the places of its logits among the step's.

    Each runs one more path of every tree; sequences that are no trees are in the first.
    """
    paths = [paths_of(step, sequence) for sequence in range(len(step.lengths_S)) if len(rows_of(step, sequence))]
    steps, missing_R = [], np.ones(len(step.logit_rows_R), bool)
    for together in zip_longest(*paths):
        runs = [path for path in together if path is not None]
        rows = np.concatenate(runs) if runs else np.empty(0, np.int64)
        places_R = np.flatnonzero(np.isin(step.logit_rows_R, rows) & missing_R)
        missing_R[places_R] = False
        chains = make_step([segment_of(step, path) for path in runs], wants_hidden=step.wants_hidden)
        logit_rows = np.searchsorted(rows, step.logit_rows_R[places_R]).astype(np.int32)  # rows of a sequence come before the next one's
        steps.append((replace(chains, logit_rows_R=logit_rows), places_R))
    return steps


def kept_path_step(step: Step | None, pages: np.ndarray, *, start: int, rows: np.ndarray) -> Step:
    """The step that writes these rows of a tree as the cached tokens from `start` on; see `Executor.copy_slots`.

    step: the one that ran the tree. ValueError where it had no such tree of a sequence with these pages, or the tree no such path.
    """
    for sequence in range(0 if step is None else len(step.lengths_S)):
        if step is None or not step.is_tree(sequence):
            continue
        tree = rows_of(step, sequence)
        used = step.pages_SP[sequence, : pages_for(int(step.lengths_S[sequence]))]
        if start != step.lengths_S[sequence] - len(tree) or not np.array_equal(used, pages[: len(used)]):
            continue
        if not len(rows) or not 0 <= rows[-1] < len(tree) or not np.array_equal(step.path_of(int(tree[rows[-1]])), tree[rows]):
            raise ValueError(f"rows {rows.tolist()} are no path of the draft tree that was run at {start}")
        return make_step([segment_of(step, tree[rows])._replace(num_logits=0)])
    raise ValueError(f"no draft tree was run at {start} of a sequence with pages {pages.tolist()}")


def rows_of(step: Step, sequence: int) -> np.ndarray:
    """The rows of the step that are of this sequence."""
    return np.arange(step.starts_S1[sequence], step.starts_S1[sequence + 1])


def paths_of(step: Step, sequence: int) -> list[np.ndarray]:
    """Rows on the way to each leaf of a tree; all rows of what is no tree."""
    rows = rows_of(step, sequence)
    if not step.is_tree(sequence):
        return [rows]
    return [step.path_of(leaf) for leaf in leaves_of(step, step.rows_of(sequence))]


def segment_of(step: Step, rows: np.ndarray) -> Segment:
    """These rows of one sequence, as tokens that follow each other from the first one's place."""
    sequence = int(step.sequences_T[rows[0]])
    start = int(step.lengths_S[sequence]) - len(rows_of(step, sequence))
    return Segment(
        tokens=step.tokens_T[rows].tolist(),
        start=start,
        pages=step.pages_SP[sequence, : pages_for(start + len(rows))].tolist(),
        numerics=int(step.numerics_S[sequence]),
        adapter=int(step.adapters_S[sequence]),
        sequence=int(step.ids_S[sequence]),
    )
