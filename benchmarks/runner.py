"""Starts engines: which programs there are, which interpreters have them, and one run as a subprocess."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engines.work import Work, arguments_of
from minicpm4.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
MAX_SECONDS = 3600


@dataclass(frozen=True)
class Program:
    """module: in benchmarks.engines. library: what its interpreter imports. install: how to get it. architecture: of the
    random-weight files that it reads."""

    module: str
    library: str
    install: str
    architecture: str = "minicpm"


@dataclass(frozen=True)
class Engine:
    """A program with an interpreter that can run it. name: as shown, such as minicpm4@1a2b3c4 for a commit. harness: the folder whose
    `benchmarks` the program is of."""

    name: str
    program: Program
    interpreter: str
    harness: Path = ROOT


PROGRAMS = {
    "llama.cpp": Program("llamacpp", "llama_cpp", "CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python"),
    "openvino": Program("openvino", "openvino_genai", "pip install openvino-genai", architecture="llama"),
    "ctranslate2": Program("ctranslate2", "ctranslate2", "pip install ctranslate2 gguf", architecture="llama"),
    "onnxruntime-genai": Program(
        "onnxruntime_genai",
        "onnxruntime_genai",
        "pip install onnxruntime-genai onnx-ir transformers torch gguf",
        architecture="llama",
    ),
    "minicpm4": Program("minicpm4", "minicpm4", "pip install ."),
}


def find_engines(interpreters: Mapping[str, str]) -> tuple[list[Engine], dict[str, str]]:
    """The engines that can run, and why the others cannot. interpreters: by name; this one for those not named.

    ConfigError for a name that no program has, and for an engine that was named and cannot run.
    """
    unknown = interpreters.keys() - PROGRAMS.keys()
    if unknown:
        raise ConfigError(f"there is no engine {', '.join(sorted(unknown))}", hint=f"choose of {', '.join(PROGRAMS)}")
    found, missing = list[Engine](), dict[str, str]()
    for name, program in PROGRAMS.items():
        interpreter = interpreters.get(name, sys.executable)
        if has_library(interpreter, program.library):
            found.append(Engine(name, program, interpreter))
            continue
        remedy = f"{program.install}; then give --engine {name}=PYTHON"
        if name in interpreters:
            raise ConfigError(f"{interpreter} cannot import {program.library}", hint=remedy)
        missing[name] = f"not installed ({remedy})"
    return found, missing


def has_library(interpreter: str, library: str) -> bool:
    try:
        return not subprocess.run([interpreter, "-c", f"import {library}"], capture_output=True, check=False).returncode
    except OSError:
        return False


def run_engine(engine: Engine, work: Work) -> dict[str, Any]:
    """What the engine's program printed: `Measured` as JSON, {"refused": why}, or {"failed": why} where it broke down."""
    command = [engine.interpreter, "-m", f"benchmarks.engines.{engine.program.module}", *arguments_of(work)]
    try:
        done = subprocess.run(command, cwd=engine.harness, capture_output=True, text=True, check=False, timeout=MAX_SECONDS)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {MAX_SECONDS} s"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return {"failed": f"status {done.returncode}, {said[-1] if said else 'and said nothing'}"}
    result: dict[str, Any] = json.loads(lines[-1])
    return result
