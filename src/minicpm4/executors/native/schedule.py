"""From instructions to phases: between two phases all threads wait for each other, so fewer is faster.

Neighbours that work row by row share a phase; neighbouring products share one, and what follows them column by column is done to each
piece while it is in the cache; arrays that are dead lend their buffer to the next of the same shape, and those that only their own task
looks at are kept a task's worth.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from minicpm4._native import PhaseKind
from minicpm4.executors.native.instructions import (
    AttendPages,
    CompressKeys,
    FindBlockMaxima,
    MergeSplits,
    Quantize,
    SelectBlocks,
    StoreKeys,
    StoreValues,
)
from minicpm4.executors.tracing import AddBias, AddScaled, HeadNorm, Instruction, Linear, RmsNorm, Rope, Scale, Swiglu, Symbol

HEADWISE: frozenset[type[Instruction]] = frozenset((HeadNorm, Rope, StoreKeys, StoreValues))  # these need whole heads
COLUMNWISE = HEADWISE | {AddScaled, AddBias, Swiglu, Quantize, FindBlockMaxima}  # these need no other column of a row, but for heads
IN_PLACE = frozenset((Scale, AddScaled, AddBias, Swiglu, Rope, RmsNorm, HeadNorm, MergeSplits))  # each row reads before it writes
CUT_IN_TASKS = frozenset((CompressKeys, SelectBlocks, AttendPages))  # each a phase
TILE_COLUMNS, WIDEST_HEAD = 16, 256  # of native/layout.h and native/program.cc: heads that a task holds whole


@dataclass(frozen=True)
class Job:
    """Products of equal width, and what is then done to their columns. In a phase that is not of products, all is tail."""

    products: tuple[Linear, ...]
    tail: tuple[Instruction, ...]

    @property
    def instructions(self) -> tuple[Instruction, ...]:
        return (*self.products, *self.tail)


@dataclass(frozen=True)
class Phase:
    """kind: see native/program.h."""

    kind: PhaseKind
    has_logit_rows: bool
    jobs: tuple[Job, ...]

    @property
    def instructions(self) -> tuple[Instruction, ...]:
        return tuple(instruction for job in self.jobs for instruction in job.instructions)


def group_phases(instructions: Sequence[Instruction], *, head_dim: int) -> list[Phase]:
    """All instructions in phases, in an order that respects what they read."""
    phases: list[Phase] = []
    rest = list(instructions)
    while rest:
        first = rest[0]
        if isinstance(first, Linear):
            kind, jobs = PhaseKind.products, take_products(rest, head_dim=head_dim)
        elif type(first) in CUT_IN_TASKS:
            kind, jobs = PhaseKind.tasks, (Job((), (first,)),)
        else:
            kind, jobs = PhaseKind.rows, (Job((), take_rows(rest)),)
        phases.append(Phase(kind, first.has_logit_rows, jobs))
        del rest[: len(phases[-1].instructions)]
    return phases


def take_rows(instructions: Sequence[Instruction]) -> tuple[Instruction, ...]:
    """The instructions at the beginning that work row by row, on the same rows."""
    taken: list[Instruction] = []
    for each in instructions:
        if isinstance(each, Linear) or type(each) in CUT_IN_TASKS or each.has_logit_rows != instructions[0].has_logit_rows:
            break
        taken.append(each)
    return tuple(taken)


def take_products(instructions: Sequence[Instruction], *, head_dim: int) -> tuple[Job, ...]:
    """The products at the beginning that do not read each other, with their tails, as jobs."""
    jobs: list[Job] = []
    takes_heads = head_dim % TILE_COLUMNS == 0 and head_dim <= WIDEST_HEAD
    for each in instructions:
        touched = [job for job in jobs if any(other.out in each.inputs for other in job.instructions)]
        if isinstance(each, Linear) and not touched and not any(job.tail for job in jobs):
            jobs.append(Job((each,), ()))
        elif touched and can_follow(each, touched, takes_heads=takes_heads):
            joined = Job(tuple(p for job in touched for p in job.products), (*(t for job in touched for t in job.tail), each))
            jobs = [joined if job is touched[0] else job for job in jobs if job is touched[0] or job not in touched]
        else:
            break
    return tuple(jobs)


def can_follow(instruction: Instruction, jobs: Sequence[Job], *, takes_heads: bool) -> bool:
    """Whether the instruction can be done to the columns of these jobs, joined into one, piece by piece."""
    widths = {product.out.columns for job in jobs for product in job.products}
    return type(instruction) in COLUMNWISE and len(widths) == 1 and (takes_heads or type(instruction) not in HEADWISE)


@dataclass(frozen=True)
class Buffer:
    """is_local: see Program::add_buffer of native/program.h."""

    columns: int
    is_local: bool


def local_symbols(phases: Sequence[Phase], *, results: Collection[Symbol]) -> set[Symbol]:
    """Arrays that are made in a phase of products and looked at nowhere else, but for what they were quantized to.

    results: arrays that are looked at later.
    """
    made = {
        each.out: number
        for number, phase in enumerate(phases)
        if phase.kind == PhaseKind.products
        for each in phase.instructions
        if each.out is not None
    }
    looked_at = {
        symbol
        for number, phase in enumerate(phases)
        for each in phase.instructions
        if not (isinstance(each, Linear) and each.weight.reads_codes)
        for symbol in each.inputs
        if made.get(symbol) != number
    }
    return made.keys() - looked_at - set(results)


def last_phases(phases: Sequence[Phase], *, results: Collection[Symbol]) -> dict[Symbol, int]:
    """The phase after which nobody wants an array; results outlive all."""
    last: dict[Symbol, int] = {}
    for number, phase in enumerate(phases):
        for each in phase.instructions:
            last |= dict.fromkeys(each.inputs if each.out is None else (*each.inputs, each.out), number)
    return last | dict.fromkeys(results, len(phases))


def assign_buffers(phases: Sequence[Phase], *, results: Collection[Symbol]) -> tuple[dict[Symbol, int], list[Buffer]]:
    """Buffer of each array, and the buffers.

    A buffer is free after the last phase of the array that has it; what works in place takes over its input's. Arrays with codes keep
    these beside their buffer, so that a buffer is shared only by arrays of equal columns.
    """
    local, last = local_symbols(phases, results=results), last_phases(phases, results=results)
    buffer_of: dict[Symbol, int] = {}
    buffers: list[Buffer] = []
    holders: list[Symbol] = []  # of each buffer, the newest array in it
    for number, phase in enumerate(phases):
        for position, each in enumerate(phase.instructions):
            if each.out is None:
                continue
            kind = Buffer(each.out.columns, each.out in local)
            source = in_place_source(phase, position, dying={symbol for symbol, end in last.items() if end == number})
            free = [place for place, holder in enumerate(holders) if buffers[place] == kind and last[holder] < number]
            if source is not None and buffers[buffer_of[source]] == kind:
                place = buffer_of[source]
            elif free:
                place = max(free, key=lambda place: last[holders[place]])  # the one that is most likely in a cache
            else:
                place = len(buffers)
                buffers.append(kind)
                holders.append(each.out)
            buffer_of[each.out], holders[place] = place, each.out
    return buffer_of, buffers


def in_place_source(phase: Phase, position: int, *, dying: Collection[Symbol]) -> Symbol | None:
    """The input of this instruction that dies with it and has the shape of its output, if the operation may work in place.

    dying: arrays whose last phase this is.
    """
    each = phase.instructions[position]
    if type(each) not in IN_PLACE or each.out is None:
        return None
    later = {symbol for other in phase.instructions[position + 1 :] for symbol in other.inputs}
    later |= {product.x for job in phase.jobs for product in job.products}  # other tasks still read it
    shape = each.out.columns, each.out.has_logit_rows
    candidates = (symbol for symbol in each.inputs if symbol in dying and symbol not in later)
    return next((symbol for symbol in candidates if (symbol.columns, symbol.has_logit_rows) == shape), None)
