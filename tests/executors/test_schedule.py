"""Phases and buffers compute what the instructions say, in whatever order tasks run: random programs, interpreted both ways."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4._native import PhaseKind
from minicpm4.executors.native.instructions import (
    AttendPages,
    MergeSplits,
    PlacedWeight,
    Quantize,
    ScaledEmbed,
    StoreKeys,
    StoreValues,
    with_quantization,
    with_scaled_embedding,
)
from minicpm4.executors.native.schedule import Phase, assign_buffers, group_phases, local_symbols
from minicpm4.executors.tracing import AddScaled, Embed, Linear, RmsNorm, Rope, Scale, Swiglu, Symbol
from tests.toy import TOY

WIDTHS = (32, 64)
HEAD_DIM = 16
SLICE = 32


class Machine:
    """Runs instructions on arrays: one a symbol, or one a buffer. Codes are a copy of what was there when they were made."""

    def __init__(self, place_of):
        self.place_of, self.arrays, self.codes, self.cache = place_of, {}, {}, {}

    def read(self, symbol, columns=slice(None)):
        return self.arrays[self.place_of(symbol)][columns]

    def write(self, symbol, columns, result):
        array = self.arrays.setdefault(self.place_of(symbol), np.full(symbol.columns, np.nan))
        array[columns] = result

    def run(self, instruction, columns=slice(None)):
        """The instruction on some columns of its result, or of its input if it has none."""
        match instruction:
            case Quantize(x=x):
                codes = self.codes.setdefault(self.place_of(x), np.full(x.columns, np.nan))
                codes[columns] = self.read(x, columns)
            case StoreKeys(k=stored, layer=layer) | StoreValues(v=stored, layer=layer):
                self.cache.setdefault((type(instruction), layer), np.zeros(64))[columns] = self.read(stored, columns)
            case _:
                self.write(instruction.out, columns, self.compute(instruction, columns))

    def compute(self, instruction, columns):
        match instruction:
            case ScaledEmbed(out, _, factor):
                return np.linspace(-1, 1, out.columns) + factor
            case Linear(out, x, weight):
                source = self.codes[self.place_of(x)] if weight.reads_codes else self.read(x)
                return np.sin(source.sum() + np.arange(out.columns) * weight.place)[columns]
            case AttendPages(_, q, layer):
                return self.read(q) + self.cache[StoreKeys, layer].sum() + self.cache[StoreValues, layer].sum()
            case MergeSplits(_, attended):
                return self.read(attended)
            case RmsNorm(_, x):
                return self.read(x) / (1 + np.abs(self.read(x)).sum())
            case Rope(_, x, rotation):
                return self.read(x, columns) + self.read(rotation).sum()
            case Scale(_, x, factor):
                return self.read(x, columns) * factor
            case Swiglu(_, gate, up):
                return self.read(gate, columns) * self.read(up, columns) + self.read(gate, columns)
            case AddScaled(_, x, y, factor):
                return self.read(x, columns) + factor * self.read(y, columns)


def random_program(seed):
    """Instructions as a forward pass might have them, in a random order, each reading what was made before."""
    random = np.random.default_rng(seed)
    symbols = [Symbol(0, 32), Symbol(1, 64)]
    instructions = [ScaledEmbed(symbol, None, factor) for symbol, factor in zip(symbols, (0.5, 0.25), strict=True)]

    def emit(kind, columns, *operands):
        symbols.append(Symbol(len(symbols), columns))
        instructions.append(kind(symbols[-1], *operands))
        return symbols[-1]

    def pick(columns=None):
        candidates = [symbol for symbol in symbols[-6:] if columns is None or symbol.columns == columns] or [symbols[columns == 64]]
        return candidates[random.integers(len(candidates))]

    def product(x, columns):
        weight = PlacedWeight(int(random.integers(10, 99)), (columns, x.columns), reads_codes=bool(random.random() < 0.6))
        return emit(Linear, columns, x, weight)

    for layer in range(12):
        columns = int(random.choice(WIDTHS))
        choice = random.integers(7)
        if choice == 0:
            x = pick()
            emit(Swiglu, columns, product(x, columns), product(x, columns))
        elif choice == 1:
            emit(AddScaled, columns, pick(columns), product(pick(), columns), 0.5)
        elif choice == 2:
            emit(RmsNorm, (x := pick()).columns, x, None, 0.0)
        elif choice == 3:
            x, rotation = pick(), pick(32)
            q, k, v = product(x, columns), product(x, 64), product(x, 64)
            q, k = emit(Rope, columns, q, rotation), emit(Rope, 64, k, rotation)
            instructions.extend((StoreKeys(k, layer), StoreValues(v, layer)))
            emit(MergeSplits, columns, emit(AttendPages, columns, q, layer))
        elif choice == 4:
            product(product(pick(), columns), 32)
        elif choice == 5:
            emit(Scale, (x := pick()).columns, x, 1.5)
        else:
            emit(AddScaled, (x := pick()).columns, x, pick(x.columns), -0.5)
    product(pick(), 64)
    return with_quantization(instructions)


def run_phase(phase: Phase, machine: Machine, random, locals_=()):
    """locals_: arrays of which nothing is left after the task that makes them."""
    if phase.kind != PhaseKind.products:
        for instruction in phase.instructions:
            machine.run(instruction)
        return
    tasks = [(job, at) for job in phase.jobs for at in range(0, job.products[0].out.columns, SLICE)]
    for index in random.permutation(len(tasks)):
        job, at = tasks[index]
        for instruction in job.instructions:
            machine.run(instruction, slice(at, at + SLICE))
        for instruction in job.instructions:
            if instruction.out in locals_:
                machine.write(instruction.out, slice(None), np.nan)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_phases_compute_what_the_instructions_say(seed):
    instructions = random_program(seed)
    plain = Machine(lambda symbol: symbol.index)
    for instruction in instructions:
        plain.run(instruction)
    phases = group_phases(instructions, head_dim=HEAD_DIM)
    assert sorted(map(id, instructions)) == sorted(id(each) for phase in phases for each in phase.instructions), "every one once"
    random = np.random.default_rng(seed)
    made = [instruction.out for instruction in instructions if instruction.out is not None]
    results = (made[-1], made[random.integers(len(made))])
    buffer_of, buffers = assign_buffers(phases, results=results)
    locals_ = local_symbols(phases, results=results)
    assert all(buffers[buffer_of[symbol]].is_local == (symbol in locals_) for symbol in made)
    replayed = Machine(buffer_of.__getitem__)
    for phase in phases:
        run_phase(phase, replayed, random, locals_)
    for result in results:
        np.testing.assert_array_equal(replayed.read(result), plain.read(result))
    assert replayed.cache.keys() == plain.cache.keys()
    for key, stored in plain.cache.items():
        np.testing.assert_array_equal(replayed.cache[key], stored)
    assert len(buffers) < len(buffer_of), "buffers are used again"


@pytest.mark.parametrize(("head_dim", "count"), [(16, 2), (TOY.head_dim, 1)], ids=str)
def test_heads_that_do_not_fit_tiles_wait_for_their_own_phase(head_dim, count):
    x, rotation, q, turned = (Symbol(index, 96) for index in range(4))
    instructions = [
        ScaledEmbed(x, None, 1.0),
        ScaledEmbed(rotation, None, 1.0),
        Linear(q, x, PlacedWeight(0, (96, 96))),
        Rope(turned, q, rotation),
    ]
    product = next(phase for phase in group_phases(instructions, head_dim=head_dim) if phase.kind == PhaseKind.products)
    assert len(product.instructions) == count


def test_an_embedding_takes_its_scale_and_no_other() -> None:
    x, scaled, normed, rescaled = (Symbol(index, 8) for index in range(4))
    instructions = [Embed(x, "table"), Scale(scaled, x, 3.0), RmsNorm(normed, scaled, None, 0.0), Scale(rescaled, normed, 0.5)]
    assert with_scaled_embedding(instructions) == [ScaledEmbed(scaled, "table", 3.0), *instructions[2:]]
