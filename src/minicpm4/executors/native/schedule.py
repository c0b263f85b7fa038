"""From recorded calls to phases: between two phases all threads wait for each other, so fewer is faster.

Rewrites, each small: inputs of products are encoded, where these want it, as soon as they are made; neighbours that work row by row share a
phase; neighbouring products share one, and what follows them column by column is done to each piece while it is in the cache;
values that are dead lend their buffer to the next of the same shape, and those that only their own task looks at are kept a task's worth.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from minicpm4.executors.native.record import Call, Value

# These need no other column of a row, but for heads.
COLUMN_OPS = ("add_scaled", "add_bias", "swiglu", "quantize", "rms_norm_heads", "rope", "store_keys", "store_values", "block_maxima")
HEAD_OPS = ("rms_norm_heads", "rope", "store_keys", "store_values")  # these need whole heads
IN_PLACE_OPS = (
    "scale",
    "add_scaled",
    "add_bias",
    "swiglu",
    "rope",
    "rms_norm",
    "rms_norm_heads",
    "merge",
)  # may write over an input: each row reads before it writes
TASK_OPS = ("compress_keys", "select_blocks", "attend")  # cut into tasks of their own, each a phase
TILE_COLUMNS, WIDEST_HEAD = 16, 256  # of native/layout.h and native/program.cc: heads that a task holds whole


@dataclass(frozen=True)
class Job:
    """Products of equal width, and what is then done to their columns. In a phase that is not of products, all is tail."""

    products: tuple[Call, ...]
    tail: tuple[Call, ...]


@dataclass(frozen=True)
class Phase:
    """kind: rows, products or tasks, as in native/program.h."""

    kind: str
    has_logit_rows: bool
    jobs: tuple[Job, ...]

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(call for job in self.jobs for call in (*job.products, *job.tail))


def add_quantization(calls: list[Call], weights: Collection[str]) -> list[Call]:
    """Inserts `quantize` after the maker of each value that one of the weights multiplies."""
    wanted = {call.inputs[0].index for call in calls if call.op == "linear" and call.weight in weights}
    result = []
    for call in calls:
        result.append(call)
        if call.out is not None and call.out.index in wanted:
            result.append(Call("quantize", None, (call.out,)))
    return result


def add_scale_to_embedding(calls: list[Call]) -> list[Call]:
    """The embedding's scale is applied as rows are looked up."""
    if calls[1].op != "scale" or calls[0].op != "embed":
        return calls
    return [replace(calls[0], out=calls[1].out, factor=calls[1].factor), *calls[2:]]


def add_block_maxima(calls: list[Call], *, task_columns: int) -> list[Call]:
    """Appends the largest logits of each task of the head, so that who samples need not look at all of them."""
    logits = calls[-1].out
    assert logits is not None, "a forward pass ends with logits"
    index = 1 + max(call.out.index for call in calls if call.out is not None)
    return [*calls, Call("block_maxima", Value(index, -(-logits.columns // task_columns), logits.has_logit_rows), (logits,))]


def group_phases(calls: list[Call], *, head_dim: int) -> list[Phase]:
    """All calls in phases, in an order that respects what they read."""
    phases: list[Phase] = []
    rest = list(calls)
    while rest:
        first = rest[0]
        if first.op == "linear":
            jobs, count = take_products(rest, head_dim=head_dim)
            phases.append(Phase("products", has_logit_rows(first), jobs))
        elif first.op in TASK_OPS:
            count = 1
            phases.append(Phase("tasks", False, (Job((), (first,)),)))
        else:
            row_calls = take_rows(rest)
            count = len(row_calls)
            phases.append(Phase("rows", has_logit_rows(first), (Job((), row_calls),)))
        del rest[:count]
    return phases


def has_logit_rows(call: Call) -> bool:
    """Whether the call works on the step's wanted rows instead of all."""
    return call.out.has_logit_rows if call.out is not None else call.inputs[0].has_logit_rows


def take_rows(calls: list[Call]) -> tuple[Call, ...]:
    """The calls at the beginning that work row by row, on the same rows."""
    taken: list[Call] = []
    for call in calls:
        if call.op in ("linear", *TASK_OPS) or has_logit_rows(call) != has_logit_rows(calls[0]):
            break
        taken.append(call)
    return tuple(taken)


def take_products(calls: list[Call], *, head_dim: int) -> tuple[tuple[Job, ...], int]:
    """The products at the beginning that do not read each other, with their tails, as jobs; and how many calls these are."""
    jobs: list[Job] = []
    takes_heads = head_dim % TILE_COLUMNS == 0 and head_dim <= WIDEST_HEAD
    count = 0
    for call in calls:
        touched = [job for job in jobs if makes_one_of(job, call.inputs)]
        if call.op == "linear" and not touched and not any(job.tail for job in jobs):
            jobs.append(Job((call,), ()))
        elif touched and can_follow(call, touched, takes_heads=takes_heads):
            joined = Job(tuple(c for job in touched for c in job.products), (*(c for job in touched for c in job.tail), call))
            jobs = [joined if job is touched[0] else job for job in jobs if job is touched[0] or job not in touched]
        else:
            break
        count += 1
    return tuple(jobs), count


def makes_one_of(job: Job, values: tuple[Value, ...]) -> bool:
    return any(call.out in values for call in (*job.products, *job.tail) if call.out is not None)


def can_follow(call: Call, jobs: list[Job], *, takes_heads: bool) -> bool:
    """Whether the call can be done to the columns of these jobs, joined into one, piece by piece."""
    widths = {product.out.columns for job in jobs for product in job.products if product.out is not None}
    return call.op in COLUMN_OPS and len(widths) == 1 and (takes_heads or call.op not in HEAD_OPS)


@dataclass(frozen=True)
class Buffer:
    """is_local: see Program::add_buffer of native/program.h."""

    columns: int
    is_local: bool


def local_values(phases: list[Phase], encoded: Collection[str]) -> set[int]:
    """Values that are made in a phase of products and looked at nowhere else, but for what they were encoded to. Not the last phase's,
    which are the result.

    encoded: the weights whose products read nothing else of a value.
    """
    made = {
        call.out.index: number for number, phase in enumerate(phases[:-1]) for call in phase.calls if call.out and phase.kind == "products"
    }
    for number, phase in enumerate(phases):
        for call in phase.calls:
            for value in call.inputs:
                if made.get(value.index, number) != number and not (call.op == "linear" and call.weight in encoded):
                    del made[value.index]
    return set(made)


def assign_buffers(phases: list[Phase], *, encoded: Collection[str], kept: Value) -> tuple[dict[int, int], list[Buffer]]:
    """Buffer of each value, and the buffers. encoded: see `local_values`. kept: a value that is a result beside the final one.

    A buffer is free again after the phase that reads its value last, or at once for an operation that may work in place.
    Values with codes keep their buffer's codes, so a buffer is shared only by values of equal columns.
    """
    local = local_values(phases, encoded) - {kept.index}
    last_phase = {value.index: number for number, phase in enumerate(phases) for call in phase.calls for value in call.inputs}
    last_phase |= {final_value(phases).index: len(phases), kept.index: len(phases)}
    buffer_of: dict[int, int] = {}
    buffers: list[Buffer] = []
    free: dict[Buffer, list[int]] = {}
    for number, phase in enumerate(phases):
        for position, call in enumerate(phase.calls):
            if call.out is None:
                continue
            kind = Buffer(call.out.columns, call.out.index in local)
            reusable = in_place_source(call, phase, position=position, last_phase=last_phase, number=number)
            if reusable is not None and buffers[buffer_of[reusable.index]] == kind:
                buffer_of[call.out.index] = buffer_of[reusable.index]
                last_phase[reusable.index] = -1
            elif free.get(kind):
                buffer_of[call.out.index] = free[kind].pop()
            else:
                buffer_of[call.out.index] = len(buffers)
                buffers.append(kind)
        for value in {v.index: v for call in phase.calls for v in (*call.inputs, *([call.out] if call.out else []))}.values():
            if last_phase.get(value.index, number) == number:
                free.setdefault(buffers[buffer_of[value.index]], []).append(buffer_of[value.index])
    return buffer_of, buffers


def in_place_source(call: Call, phase: Phase, *, position: int, last_phase: dict[int, int], number: int) -> Value | None:
    """The input that dies with this call and has the shape of its output, if the operation may work in place."""
    if call.op not in IN_PLACE_OPS or call.out is None:
        return None
    later = {value.index for other in phase.calls[position + 1 :] for value in other.inputs}
    later |= {value.index for other in phase.calls if other.op == "linear" for value in other.inputs}  # other tasks still read it
    for value in call.inputs:
        if (
            value.columns == call.out.columns
            and value.has_logit_rows == call.out.has_logit_rows
            and last_phase[value.index] == number
            and value.index not in later
        ):
            return value
    return None


def final_value(phases: list[Phase]) -> Value:
    value = phases[-1].calls[-1].out
    assert value is not None, "a forward pass ends with logits"
    return value
