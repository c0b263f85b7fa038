"""minicpm4 show: what a model is, before anything of it is loaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from json import dumps
from typing import Annotated, Any

from minicpm4.checkpoint import Checkpoint, open_checkpoint, resolve
from minicpm4.cli import options as o
from minicpm4.cli.grouped import grouped
from minicpm4.cli.terminal import transfer_bar, warn, write
from minicpm4.engine import LoadOptions, MemoryPlan, plan_load
from minicpm4.errors import UnsupportedError

ShowTensors = Annotated[bool, o.option("--tensors", help="List every tensor.")]


@grouped(load=o.load_options)
def show(tensors: ShowTensors = False, json: o.AsJson = False, *, load: LoadOptions) -> None:
    """Print a model's config, tensors, formats and memory plan."""
    with transfer_bar() as bar:
        path = resolve(
            load.model, revision=load.revision, offline=load.offline, progress=lambda done, total: bar("downloading", done, total)
        )
    with open_checkpoint(path) as checkpoint:
        plan, warnings = plan_if_possible(checkpoint, load)
        facts = describe(checkpoint, plan, warnings=(*checkpoint.warnings, *warnings), lists_tensors=tensors or json)
    if json:
        write(dumps(facts, ensure_ascii=False) + "\n")
        return
    for warning in facts["warnings"]:
        warn(warning)
    print_facts(facts, plan)


def plan_if_possible(checkpoint: Checkpoint, load: LoadOptions) -> tuple[MemoryPlan | None, tuple[str, ...]]:
    """The plan, or none and why: a model can be shown where the executor that would run it cannot be loaded."""
    try:
        return plan_load(load, checkpoint).memory, ()
    except UnsupportedError as error:
        return None, (f"no memory plan: {error}",)


def describe(checkpoint: Checkpoint, plan: MemoryPlan | None, *, warnings: tuple[str, ...], lists_tensors: bool) -> dict[str, Any]:
    infos = checkpoint.tensors
    counts, sizes = Counter(info.format for info in infos.values()), Counter[str]()
    for info in infos.values():
        sizes[info.format] += info.nbytes
    listed = {name: {"format": i.format, "shape": i.shape, "bytes": i.nbytes} for name, i in infos.items()} if lists_tensors else {}
    return {
        "name": checkpoint.name,
        "path": str(checkpoint.path),
        "file_bytes": checkpoint.file_bytes,
        "config": {**asdict(checkpoint.config), "biases": sorted(checkpoint.config.biases)},
        "formats": {name: {"tensors": counts[name], "bytes": sizes[name]} for name in sorted(counts)},
        "memory": None if plan is None else asdict(plan),
        "warnings": warnings,
        "tensors": listed,
    }


def print_facts(facts: dict[str, Any], plan: MemoryPlan | None) -> None:
    lines = {"model": facts["name"], "path": facts["path"], "file": f"{facts['file_bytes'] / 1e6:.1f} MB"}
    lines |= {key: shortened(str(value)) for key, value in facts["config"].items()}
    lines |= {f"format {name}": f"{found['tensors']} tensors, {found['bytes'] / 1e6:.1f} MB" for name, found in facts["formats"].items()}
    lines["memory plan"] = "unknown" if plan is None else str(plan)
    lines |= {name: f"{tensor['format']} {tuple(tensor['shape'])}" for name, tensor in facts["tensors"].items()}
    width = max(len(key) for key in lines)
    write("".join(f"{key:{width}}  {value}\n" for key, value in lines.items()))


def shortened(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:160]} …"
