"""Writes a graph as a Python function, one line an operation, and hands it to MindSpore's compiler.

The compiler reads source. Given `model.forward` with its loop and the classes behind it, it takes 36 s for twelve layers and grows with
their square (2.10, 2026-11-25); the same operations in one function without loops or objects are compiled in seconds. So each instruction
of the traced forward pass (`executors.tracing`) becomes lines of a function. Knows no model.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

# MindSpore remembers what it has compiled, operations and tensors among it, by name and id. So names are numbered, and what was compiled is
# kept until the process ends, that no id comes back for something else; the large parts of an executor are not among it.
NUMBERS = itertools.count()
COMPILED: list[dict[str, Any]] = []


class GraphWriter:
    """Lines of a function, and the objects that they mention."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.objects: dict[str, Any] = {}
        self.names: dict[int, str] = {}  # of objects, which `objects` keeps alive
        self.numbers: dict[float, str] = {}

    def name_of(self, value: Any) -> str:
        """The name under which lines can mention an operation or a tensor."""
        if id(value) not in self.names:
            self.names[id(value)] = name = f"c{len(self.objects)}"
            self.objects[name] = value
        return self.names[id(value)]

    def number(self, value: float) -> str:
        """A float32 tensor: the compiler takes a Python float for float64."""
        if value not in self.numbers:
            self.numbers[value] = self.name_of(Tensor(np.float32(value)))
        return self.numbers[value]

    def call(self, operation: Any, *arguments: str, outputs: int = 1) -> str:
        """Adds `outputs = operation(arguments)`; the name of the output, or of all, separated by commas."""
        first = len(self.lines)
        names = ", ".join(f"v{first}_{index}" for index in range(outputs))
        self.lines.append(f"{names} = {self.name_of(operation)}({', '.join(arguments)})")
        return names

    def compiled(self, inputs: Sequence[str], results: Sequence[str]) -> Callable[..., Any]:
        """The function of these inputs; MindSpore compiles it when it is called first, and needs its source until then."""
        name = f"minicpm4_graph_{next(NUMBERS)}"
        body = "".join(f"    {line}\n" for line in (*self.lines, f"return {', '.join(results)}"))
        source = f"def {name}({', '.join(inputs)}):\n{body}"
        return CompiledLater(name, source, self.objects)


class CompiledLater:
    """A written function. The source lies in a file until the first call has compiled it."""

    def __init__(self, name: str, source: str, objects: dict[str, Any]) -> None:
        self.name, self.source, self.objects = name, source, objects
        self.function: Callable[..., Any] | None = None

    def __call__(self, *tensors: Tensor) -> Any:
        if self.function is not None:
            return self.function(*tensors)
        with TemporaryDirectory(prefix="minicpm4-") as folder:
            path = Path(folder) / f"{self.name}.py"
            path.write_text(self.source)
            module = ModuleType(self.name)
            module.__file__ = str(path)
            vars(module).update(self.objects)
            exec(compile(self.source, path, "exec"), vars(module))
            COMPILED.append(vars(module))
            sys.modules[self.name] = module  # where the compiler looks the function's globals up
            try:
                self.function = ms.jit(getattr(module, self.name))
                return self.function(*tensors)
            finally:
                del sys.modules[self.name]
