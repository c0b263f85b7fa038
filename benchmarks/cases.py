"""What is compared: single cases, and the named sets of them. Knows no engine and no file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from minicpm4.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and the work done with it.

    name: as shown. source: "default", a .gguf file, or a shape for random weights: 0.5B, 8B, a config.json. format: of the
    random weights, or what a file is requantized to; None for the file as it is. prefill, before, decode, context, streams, threads,
    repeats, attention: as in `engines.work.Work`. rounds: how often each engine is started. target: how many times llama.cpp's rate is
    wanted; of a case that measures one thing only.
    """

    name: str
    source: str
    format: str | None = None
    prefill: int = 0
    before: int = 0
    decode: int = 0
    context: int = 0
    streams: int = 1
    threads: int = 2
    repeats: int = 2
    attention: str = "dense"
    rounds: int = 3
    target: float | None = None

    def __post_init__(self) -> None:
        for field in ("prefill", "before", "decode", "context"):
            if getattr(self, field) < 0:
                raise ConfigError(f"case {self.name}: {field} is {getattr(self, field)}, expected 0 or more", hint="correct the case")
        for field in ("streams", "threads", "repeats", "rounds"):
            if getattr(self, field) < 1:
                raise ConfigError(f"case {self.name}: {field} is {getattr(self, field)}, expected 1 or more", hint="correct the case")
        if not self.prefill and not self.decode:
            raise ConfigError(f"case {self.name} measures nothing", hint="give it prefill or decode")
        if self.attention not in ("dense", "sparse"):
            raise ConfigError(f"case {self.name}: attention is {self.attention!r}, expected dense or sparse", hint="correct the case")
        if self.before and not self.prefill:
            raise ConfigError(f"case {self.name} has tokens before a prompt and no prompt", hint="give it prefill, or context instead")
        if self.target is not None and self.prefill and self.decode:
            raise ConfigError(f"case {self.name} has a target for both prefill and decode", hint="make two cases of it")

    @property
    def label(self) -> str:
        """The name with the number of threads, which tells the cases of a set apart."""
        return f"{self.name}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def decode_case(name: str, source: str, format_name: str | None, *, target: float, **changes: Any) -> Case:
    return replace(Case(name=f"decode, {name}", source=source, format=format_name, decode=32, target=target), **changes)


def prefill_case(name: str, source: str, format_name: str | None, *, target: float, **changes: Any) -> Case:
    return replace(Case(name=f"prefill, {name}", source=source, format=format_name, prefill=512, repeats=1, target=target), **changes)


QUICK = (
    Case(name="default model Q4_1", source="default", prefill=512, decode=64),
    Case(name="default model Q4_0", source="default", format="q4_0", prefill=512, decode=64),
    Case(name="0.5B Q4_0", source="0.5B", format="q4_0", prefill=512, decode=64),
)
# Every row of the goals; repeats and rounds keep a 0.5B case near 20 s and an 8B one near 60 s on two cores.
GOALS = (
    decode_case("default model Q4_1", "default", None, target=2.0, decode=64),
    decode_case("default model Q4_0", "default", "q4_0", target=1.3, decode=64),
    decode_case("0.5B Q4_0", "0.5B", "q4_0", target=1.5),
    decode_case("0.5B Q4_K_M", "0.5B", "q4_k_m", target=1.4),
    decode_case("0.5B Q8_0", "0.5B", "q8_0", target=1.5),
    decode_case("0.5B TQ2_0", "0.5B", "tq2_0", target=1.9),
    decode_case("8B TQ2_0", "8B", "tq2_0", target=1.4, decode=16, repeats=1),
    decode_case("8B Q4_0", "8B", "q4_0", target=1.0, decode=16, repeats=1),
    decode_case("0.5B Q4_0 at 4K", "0.5B", "q4_0", target=2.0, context=4096),
    decode_case("0.5B Q4_0 at 16K", "0.5B", "q4_0", target=5.0, context=16384, decode=16),
    prefill_case("512, 0.5B Q4_0", "0.5B", "q4_0", target=2.5),
    prefill_case("512, default model Q4_1", "default", None, target=3.5),
    prefill_case("4096, 0.5B Q4_0", "0.5B", "q4_0", target=4.0, prefill=4096, rounds=2),
    decode_case("8 streams, 0.5B Q4_0", "0.5B", "q4_0", target=2.0, streams=8, decode=16),
)
# How decoding, and the newest 512 tokens of a prompt, slow down with the context; up to 131072 tokens with these.
DEPTHS = {"4K": 4096, "8K": 8192, "16K": 16384, "32K": 32768, "64K": 65536, "128K": 130560}


def long_cases(attention: str) -> tuple[Case, ...]:
    shared = Case(name="", source="0.5B", format="q4_0", decode=8, attention=attention, rounds=2)
    decode = (replace(shared, name=f"decode at {name}, {attention}", context=depth) for name, depth in DEPTHS.items())
    after = ((f"512 after {name}, {attention}", depth) for name, depth in {"0": 0, **DEPTHS}.items())
    prefill = (replace(shared, name=name, prefill=512, before=depth, decode=0, repeats=1) for name, depth in after)
    return (*decode, *prefill)


SETS: dict[str, tuple[Case, ...]] = {
    "quick": QUICK,
    "long": (*long_cases("sparse"), *long_cases("dense")),
    "issue": tuple(replace(case, threads=threads) for threads in (2, 1) for case in GOALS),
}


def read_cases(path: Path) -> tuple[Case, ...]:
    """The cases of a JSON file: a list of objects with the fields of `Case`. ConfigError where it is not that."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read cases from {path.name}: {error}", hint="give a JSON list of cases; see benchmarks/README.md"
        ) from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path.name} holds no list of cases", hint="give a JSON list of objects; see benchmarks/README.md")
    return tuple(case_from(entry) for entry in entries)


def case_from(entry: dict[str, Any]) -> Case:
    """A case of its JSON object; the inverse of `dataclasses.asdict`."""
    known = {field.name for field in fields(Case)}
    unknown, missing = entry.keys() - known, {"name", "source"} - entry.keys()
    if unknown or missing:
        raise ConfigError(
            f"a case has unknown fields {sorted(unknown)} and lacks {sorted(missing)}", hint=f"the fields are {', '.join(sorted(known))}"
        )
    return Case(**entry)


def case_values(case: Case) -> dict[str, Any]:
    """What identifies a case's work: all but how it is called and judged, and how often it runs."""
    return {name: value for name, value in asdict(case).items() if name not in ("name", "target", "rounds")}
