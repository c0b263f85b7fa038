"""Compares this project with other engines on the same files: python -m benchmarks.compare --set quick

Every case runs in rounds, A B A B, each engine in a process of its own. Finished runs are kept in a journal beside the result
and not run again. Writes <output>.json (raw samples and recipe), .md (a table) and .png (a picture).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.against import commit_of, harness_of, install_commit
from benchmarks.cases import SETS, Case, case_values, read_cases
from benchmarks.engines.work import Work
from benchmarks.journal import Record, Runs, open_journal
from benchmarks.peaks import measure_peaks
from benchmarks.quiet import DISTURBED_CORES, cores_of_others, sample_cpu
from benchmarks.recipe import MISSING_MATPLOTLIB, machine_facts, result_stem, say, with_suffix
from benchmarks.runner import PROGRAMS, Engine, find_engines, run_engine
from benchmarks.summary import OURS, Row, Yardstick, rows_of
from benchmarks.traffic import traffic_of
from benchmarks.write_model import model_file
from minicpm4.errors import ConfigError, MiniCPMError
from minicpm4.hardware import cache_folder


@dataclass(frozen=True)
class Plan:
    """What will be done. missing: engines that cannot run, with the remedy. baseline: the engine that ratios are made to."""

    title: str
    cases: tuple[Case, ...]
    engines: tuple[Engine, ...]
    missing: Mapping[str, str]
    baseline: str
    models: Path
    output: Path
    seed: int
    activations: str
    prompt_activations: str
    is_fresh: bool


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--set", choices=sorted(SETS), default="quick", help="named cases; quick takes some three minutes")
    which.add_argument("--cases", type=Path, metavar="FILE", help="cases from a JSON list")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name has this text")
    parser.add_argument("--engine", action="append", default=[], metavar="NAME=PYTHON", help="the interpreter that has an engine")
    parser.add_argument("--without", action="append", default=[], choices=sorted(PROGRAMS), help="leave an engine out")
    parser.add_argument("--against", metavar="REF", help="also measure this commit of ours")
    parser.add_argument("--baseline", metavar="NAME", help="ratios are made to this engine; llama.cpp unless it is absent")
    parser.add_argument("--activations", default="int8", help="what ours multiplies quantized weights with")
    parser.add_argument("--prompt-activations", default="auto", help="the same for prompts: auto, same, bf16")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and tokens")
    parser.add_argument("--models-dir", type=Path, metavar="FOLDER", help="where model files are written once")
    parser.add_argument("--output", type=Path, metavar="STEM", help="where results go; results/<date>-<set> unless given")
    parser.add_argument("--fresh", action="store_true", help="forget what the journal has")
    return parser.parse_args(arguments)


def make_plan(given: argparse.Namespace) -> Plan:
    """ConfigError where what was given cannot be done."""
    title = given.cases.stem if given.cases else given.set
    cases = tuple(case for case in (read_cases(given.cases) if given.cases else SETS[given.set]) if given.only in case.label)
    if not cases:
        raise ConfigError(f"no case has {given.only!r} in its name", hint="leave --only out to see them all")
    if any(len(entry.split("=", 1)) != 2 for entry in given.engine):
        raise ConfigError(f"--engine is {given.engine}, expected NAME=PYTHON", hint="such as llama.cpp=peers/bin/python")
    models = given.models_dir or cache_folder() / "bench"
    engines, missing = find_engines(dict(entry.split("=", 1) for entry in given.engine))
    engines = [engine for engine in engines if engine.name not in given.without]
    if given.against:
        commit = commit_of(given.against)
        interpreter = install_commit(commit, models / "commits")
        engines.insert(0, Engine(f"{OURS}@{commit}", PROGRAMS[OURS], str(interpreter), harness_of(interpreter)))
    names = [engine.name for engine in engines]
    if not names:
        raise ConfigError("no engine is left to measure", hint="leave --without out")
    baseline = given.baseline or next((name for name in ("llama.cpp", *names) if name in names and name != OURS), OURS)
    if baseline not in names:
        raise ConfigError(f"the baseline {baseline} is not measured", hint=f"choose of {', '.join(names)}")
    return Plan(
        title=title,
        cases=cases,
        engines=tuple(engines),
        missing={name: why for name, why in missing.items() if name not in given.without},
        baseline=baseline,
        models=models,
        output=given.output or result_stem(title),
        seed=given.seed,
        activations=given.activations,
        prompt_activations=given.prompt_activations,
        is_fresh=given.fresh,
    )


def settings_of(plan: Plan) -> dict[str, Any]:
    """What must be the same for runs to be compared."""
    facts = machine_facts()
    return {name: facts[name] for name in ("machine", "commit", "build")} | {
        "seed": plan.seed,
        "activations": plan.activations,
        "prompt_activations": plan.prompt_activations,
    }


def measure_all(plan: Plan, journal: Runs) -> list[Row]:
    """Every case's rows; what the journal has is not run again."""
    rows = []
    for number, case in enumerate(plan.cases, start=1):
        files = {engine.name: prepare_model(plan, case, engine) for engine in plan.engines}
        for round_number in range(case.rounds):
            for engine in plan.engines:
                if journal.find(case_values(case), engine.name, round_number) is None:
                    say(f"[{number}/{len(plan.cases)}] {case.label}: round {round_number + 1}/{case.rounds}, {engine.name}")
                    journal.add(measure_once(plan, case, engine, round_number=round_number, model=files[engine.name]))
        traffic = traffic_of(files[plan.baseline], case)
        own = [record for record in journal.records if record.round < case.rounds and record.engine in files]
        rows += rows_of(case, own, yardstick=Yardstick(traffic, plan.baseline))
    return rows


def prepare_model(plan: Plan, case: Case, engine: Engine) -> Path:
    """The file that an engine reads in a case. Whatever the architecture is called, it has the same tensors."""
    return model_file(case.source, case.format, plan.models, architecture=engine.program.architecture, seed=plan.seed)


def measure_once(plan: Plan, case: Case, engine: Engine, *, round_number: int, model: Path) -> Record:
    work = Work(
        model=str(model),
        prefill=case.prefill,
        before=case.before,
        decode=case.decode,
        context=case.context,
        streams=case.streams,
        threads=case.threads,
        repeats=case.repeats,
        seed=plan.seed,
        activations=plan.activations,
        prompt_activations=plan.prompt_activations,
        attention=case.attention,
        states=str(plan.models / "states"),
    )
    peaks = measure_peaks(case.threads)
    before = sample_cpu()
    result = run_engine(engine, work)
    others = cores_of_others(before, sample_cpu())
    for kind in ("refused", "failed"):
        if kind in result:
            say(f"    {engine.name} {kind}: {result[kind]}")
    if others is not None and others > DISTURBED_CORES:
        say(f"    other programs used {others:.1f} cores meanwhile: the numbers will not hold; stop them and give --fresh")
    return Record(case_values(case), engine.name, round_number, peaks.bytes_per_second, 1e9 * peaks.int8, others, result)


def recipe_of(plan: Plan, records: Sequence[Record]) -> dict[str, Any]:
    """What is needed to run it again."""
    versions = {record.engine: record.result["version"] for record in records if "version" in record.result}
    details = {record.engine: record.result["details"] for record in records if "details" in record.result}
    return {
        **machine_facts(),
        **settings_of(plan),
        "set": plan.title,
        "baseline": plan.baseline,
        "engines": versions,
        "engine_details": details,
        "missing": dict(plan.missing),
        "cases": [asdict(case) for case in plan.cases],
    }


def write_results(plan: Plan, journal: Runs, rows: Sequence[Row]) -> None:
    recipe = recipe_of(plan, journal.records)
    result = {"recipe": recipe, "rows": [asdict(row) for row in rows], "records": [asdict(record) for record in journal.records]}
    with_suffix(plan.output, ".json").write_text(json.dumps(result, indent=1) + "\n")
    heading = (
        f"{plan.title}, {recipe['date'][:10]}: {recipe['machine']}, {recipe['cores']} cores, commit {recipe['commit']}, "
        f"activations {plan.activations}, "
        f"of prompts {plan.prompt_activations}; {', '.join(f'{name} {version}' for name, version in recipe['engines'].items())}.\n"
        "Medians with the slowest and fastest sample; ratios of medians with the lowest and highest of a single round. "
        f"Other programs used {others_text(journal.records)}."
    )
    engines = [engine.name for engine in plan.engines]
    table = report.markdown_of(rows, engines=engines, baseline=plan.baseline, heading=heading)
    with_suffix(plan.output, ".md").write_text(table)
    print(table)
    if not report.draw(rows, with_suffix(plan.output, ".png"), baseline=plan.baseline, title=heading.split(";")[0]):
        say(MISSING_MATPLOTLIB)


def others_text(records: Sequence[Record]) -> str:
    used = [record.other_cores for record in records if record.other_cores is not None]
    return f"up to {max(used):.2f} cores during a run" if used else "an unknown number of cores"


def main() -> None:
    try:
        plan = make_plan(parse())
        for name, why in plan.missing.items():
            say(f"{name} is left out: {why}")
        journal = open_journal(with_suffix(plan.output, ".jsonl"), settings_of(plan), is_fresh=plan.is_fresh)
        write_results(plan, journal, measure_all(plan, journal))
    except MiniCPMError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
