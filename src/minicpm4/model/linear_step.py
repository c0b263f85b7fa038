"""Draft trees without masks: each path of a tree becomes a sequence of its own, on pages of its own behind what is cached.

For executors whose attention knows positions alone. A row is still computed once, in the first path that it is on; its keys and values are
written to the pages of the others too, and to its own slot. So a row sees what its path alone would, in the same places.
"""

# T rows, S sequences, M further slots

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from minicpm4.model.step import PAGE_TOKENS, Segment, Step, make_step, pages_for


@dataclass(frozen=True)
class LinearStep:
    """step: without trees. Before it, page targets[i] becomes what page sources[i] is.

    more_starts_T1, more_slots_M: row i is also written to slots more_slots[more_starts[i] : more_starts[i + 1]].
    fresh_S: of each sequence the token from which on its compressed keys are made: earlier ones came with its pages.
    """

    step: Step
    sources: np.ndarray
    targets: np.ndarray
    more_starts_T1: np.ndarray
    more_slots_M: np.ndarray
    fresh_S: np.ndarray

    @property
    def branches(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What is beside the step."""
        return self.sources, self.targets, self.more_starts_T1, self.more_slots_M, self.fresh_S


@dataclass
class Writer:
    """What comes together: segments, the old row of each new one, further slots of each old row, pages to copy."""

    segments: list[Segment] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)
    old_rows: list[int] = field(default_factory=list)
    more: dict[int, list[int]] = field(default_factory=dict)
    copies: dict[int, int] = field(default_factory=dict)


def linearize(step: Step, spare: range) -> LinearStep:
    """spare: pages that are nobody's. ValueError where the step's trees branch more than these hold."""
    writer, free = Writer(), iter(spare)
    for sequence in range(len(step.lengths_S)):
        rows, length = step.rows_of(sequence), int(step.lengths_S[sequence])
        segment = Segment(
            tokens=step.tokens_T[rows],  # type: ignore[arg-type]
            start=length - (rows.stop - rows.start),
            pages=step.pages_SP[sequence, : pages_for(length)],  # type: ignore[arg-type]
            num_logits=0,
            numerics=int(step.numerics_S[sequence]),
            adapter=int(step.adapters_S[sequence]),
            sequence=int(step.ids_S[sequence]),
        )
        if not step.is_tree(sequence):
            writer.segments.append(segment)
            writer.fresh.append(segment.start)
            writer.old_rows += range(rows.start, rows.stop)
            continue
        paths = [(step.path_of(leaf) - rows.start).tolist() for leaf in leaves_of(step, rows)]
        try:
            add_tree(writer, segment, paths, first_row=rows.start, free=free)
        except StopIteration:
            raise ValueError(f"the step's draft trees branch more than {len(spare)} pages hold; draft less at once") from None
    return finish(writer, step)


def leaves_of(step: Step, rows: slice) -> list[int]:
    """The rows of a tree that none follows."""
    assert step.ancestors_T is not None
    masks = step.ancestors_T[rows].tolist()
    followed = 0
    for row, mask in enumerate(masks):
        followed |= mask & ~(1 << row)
    return [rows.start + row for row in range(len(masks)) if not followed >> row & 1]


def add_tree(writer: Writer, segment: Segment, paths: list[list[int]], *, first_row: int, free: Iterator[int]) -> None:
    """paths: of each leaf, rows of the tree. StopIteration where pages run out."""
    start, owned = segment.start, set[int]()
    first_page = start // PAGE_TOKENS
    for path in paths:
        pages = [*segment.pages[:first_page]]
        while len(pages) < pages_for(start + len(path)):
            pages.append(next(free))
        if start % PAGE_TOKENS:
            writer.copies[pages[first_page]] = int(segment.pages[first_page])
        earlier = sum(row in owned for row in path)  # these are its first ones: what a row follows is owned before it
        for depth, row in enumerate(path):
            slots = writer.more.setdefault(first_row + row, [])
            if row in owned:
                slots.append(slot_of(pages, start + depth))
            else:
                slots.append(slot_of(segment.pages, start + row))
        owned |= {*path}
        new = path[earlier:]
        tokens = [int(segment.tokens[row]) for row in new]
        writer.segments.append(segment._replace(tokens=tokens, start=start + earlier, pages=pages))
        writer.fresh.append(start)
        writer.old_rows += [first_row + row for row in new]


def slot_of(pages: object, index: int) -> int:
    return int(pages[index // PAGE_TOKENS]) * PAGE_TOKENS + index % PAGE_TOKENS  # type: ignore[index]


def finish(writer: Writer, step: Step) -> LinearStep:
    new_row_of = {old: new for new, old in enumerate(writer.old_rows)}
    more = [writer.more.get(old, []) for old in writer.old_rows]
    logit_rows = np.array([new_row_of[old] for old in step.logit_rows_R.tolist()], np.int32)
    return LinearStep(
        step=replace(make_step(writer.segments, wants_hidden=step.wants_hidden), logit_rows_R=logit_rows),
        sources=np.array([*writer.copies.values()], np.int32),
        targets=np.array([*writer.copies], np.int32),
        more_starts_T1=np.cumsum([0, *map(len, more)], dtype=np.int32),
        more_slots_M=np.array([slot for slots in more for slot in slots], np.int32),
        fresh_S=np.array(writer.fresh, np.int32),
    )
