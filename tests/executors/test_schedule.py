"""Phases and buffers compute what the calls say, in whatever order tasks run: random programs, interpreted both ways."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.executors.native.record import Call, Value
from minicpm4.executors.native.schedule import Phase, add_quantization, assign_buffers, group_phases, local_values
from tests.toy import TOY

WIDTHS = (32, 64)
HEAD_DIM = 16
SLICE = 32


class Machine:
    """Runs calls on arrays: one a value, or one a buffer. Codes are a copy of what was there when they were made."""

    def __init__(self, place_of):
        self.place_of, self.arrays, self.codes, self.cache = place_of, {}, {}, {}

    def read(self, value, columns=slice(None)):
        return self.arrays[self.place_of(value)][columns]

    def write(self, value, columns, result):
        array = self.arrays.setdefault(self.place_of(value), np.full(value.columns, np.nan))
        array[columns] = result

    def run(self, call, columns=slice(None)):
        """The call on some columns of its result, or of its input if it has none."""
        if call.op == "quantize":
            codes = self.codes.setdefault(self.place_of(call.inputs[0]), np.full(call.inputs[0].columns, np.nan))
            codes[columns] = self.read(call.inputs[0], columns)
        elif call.op.startswith("store"):
            self.cache.setdefault((call.op, call.layer), np.zeros(64))[columns] = self.read(call.inputs[0], columns)
        else:
            self.write(call.out, columns, self.compute(call, columns))

    def compute(self, call, columns):
        a = self.read(call.inputs[0]) if call.inputs else None
        if call.op == "embed":
            return np.linspace(-1, 1, call.out.columns) + call.factor
        if call.op == "linear":
            source = self.codes[self.place_of(call.inputs[0])] if call.weight.startswith("low") else a
            return np.sin(source.sum() + np.arange(call.out.columns) * float(call.weight[-2:]))[columns]
        if call.op == "attend":
            return a + self.cache["store_keys", call.layer].sum() + self.cache["store_values", call.layer].sum()
        if call.op == "merge":
            return a
        if call.op == "rms_norm":
            return a / (1 + np.abs(a).sum())
        b = self.read(call.inputs[1], slice(None)) if len(call.inputs) > 1 else None
        if call.op == "rope":
            return a[columns] + b.sum()
        if call.op == "scale":
            return a[columns] * call.factor
        return a[columns] * b[columns] + a[columns] if call.op == "swiglu" else a[columns] + call.factor * b[columns]


def random_program(seed):
    """Calls as a forward pass might make them, in a random order, each reading what was made before."""
    random = np.random.default_rng(seed)
    calls, values = [Call("embed", Value(0, 32, False), factor=0.5), Call("embed", Value(1, 64, False), factor=0.25)], []
    values = [call.out for call in calls]

    def emit(op, inputs, columns, **details):
        values.append(Value(len(values), columns, False))
        calls.append(Call(op, values[-1], inputs, **details))
        return values[-1]

    def pick(columns=None):
        candidates = [value for value in values[-6:] if columns is None or value.columns == columns] or [values[columns == 64]]
        return candidates[random.integers(len(candidates))]

    def product(value, columns):
        kind = "low" if random.random() < 0.6 else "dense"
        return emit("linear", (value,), columns, weight=f"{kind}{random.integers(10, 99)}")

    for layer in range(12):
        columns = int(random.choice(WIDTHS))
        choice = random.integers(7)
        if choice == 0:
            x = pick()
            emit("swiglu", (product(x, columns), product(x, columns)), columns)
        elif choice == 1:
            emit("add_scaled", (pick(columns), product(pick(), columns)), columns, factor=0.5)
        elif choice == 2:
            emit("rms_norm", (x := pick(),), x.columns)
        elif choice == 3:
            x, rotation = pick(), pick(32)
            q, k, v = product(x, columns), product(x, 64), product(x, 64)
            q, k = emit("rope", (q, rotation), columns), emit("rope", (k, rotation), 64)
            calls.extend((Call("store_keys", None, (k,), layer=layer), Call("store_values", None, (v,), layer=layer)))
            emit("merge", (emit("attend", (q,), columns, layer=layer),), columns)
        elif choice == 4:
            product(product(pick(), columns), 32)
        elif choice == 5:
            emit("scale", (x := pick(),), x.columns, factor=1.5)
        else:
            emit("add_scaled", (x := pick(), pick(x.columns)), x.columns, factor=-0.5)
    product(pick(), 64)
    return add_quantization(calls, {call.weight for call in calls if call.weight and call.weight.startswith("low")})


def run_phase(phase: Phase, machine: Machine, random, locals_=()):
    """locals_: values of which nothing is left after the task that makes them."""
    if phase.kind != "products":
        for call in phase.calls:
            machine.run(call)
        return
    tasks = [(job, at) for job in phase.jobs for at in range(0, job.products[0].out.columns, SLICE)]
    for index in random.permutation(len(tasks)):
        job, at = tasks[index]
        for call in (*job.products, *job.tail):
            machine.run(call, slice(at, at + SLICE))
        for call in (*job.products, *job.tail):
            if call.out is not None and call.out.index in locals_:
                machine.write(call.out, slice(None), np.nan)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_phases_compute_what_the_calls_say(seed):
    calls = random_program(seed)
    plain = Machine(lambda value: value.index)
    for call in calls:
        plain.run(call)
    phases = group_phases(calls, head_dim=HEAD_DIM)
    assert sorted(map(id, calls)) == sorted(id(call) for phase in phases for call in phase.calls), "every call once"
    low = {call.weight for call in calls if call.weight and call.weight.startswith("low")}
    random = np.random.default_rng(seed)
    kept = random.choice([call.out for call in calls if call.out is not None])
    buffer_of, buffers = assign_buffers(phases, encoded=low, kept=kept)
    locals_ = local_values(phases, low) - {kept.index}
    assert all(buffers[buffer_of[call.out.index]].is_local == (call.out.index in locals_) for call in calls if call.out is not None)
    replayed = Machine(lambda value: buffer_of[value.index])
    for phase in phases:
        run_phase(phase, replayed, random, locals_)
    for result in (calls[-1].out, kept):
        np.testing.assert_array_equal(replayed.read(result), plain.read(result))
    assert replayed.cache.keys() == plain.cache.keys()
    for key, stored in plain.cache.items():
        np.testing.assert_array_equal(replayed.cache[key], stored)
    assert len(buffers) < len(buffer_of), "buffers are used again"


@pytest.mark.parametrize(("head_dim", "count"), [(16, 2), (TOY.head_dim, 1)], ids=str)
def test_heads_that_do_not_fit_tiles_wait_for_their_own_phase(head_dim, count):
    x, rotation, q, turned = (Value(index, 96, False) for index in range(4))
    calls = [Call("embed", x), Call("embed", rotation), Call("linear", q, (x,), weight="low10"), Call("rope", turned, (q, rotation))]
    product = next(phase for phase in group_phases(calls, head_dim=head_dim) if phase.kind == "products")
    assert len(product.calls) == count
