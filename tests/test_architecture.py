"""The rules of the house that a program can check: who imports whom, how large things are, what importing costs.

The import table is read from docs/structure.md. An exception to a budget is listed here, by name, with its reason.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "minicpm4"
MODULES = sorted(PACKAGE.rglob("*.py"))
TEST_MODULES = sorted((ROOT / "tests").rglob("*.py"))
NATIVE = sorted(path for path in (ROOT / "native").rglob("*") if path.suffix in (".h", ".cc"))
EVERYTHING = [*MODULES, *TEST_MODULES, *NATIVE]
KERNELS = sorted((PACKAGE / "executors" / "torch" / "triton").rglob("*.py"))

MAX_LINES, MAX_KERNEL_LINES = 400, 600
MAX_FUNCTION, MAX_KERNEL_FUNCTION = 60, 150
MAX_POSITIONAL = 3
MAX_PUBLIC_NAMES = 10
LARGE_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
MANY_POSITIONAL: dict[str, str] = {
    "model/config.py: require": "reads as a sentence: require that this holds, of a name, its value, and what was expected",
    "model/forward.py: product": "as ops.linear, with a layer and a role in place of the weight",
    "text/rendering/environment.py: Environment.call_binop": "Jinja2's",
    "text/rendering/environment.py: indent_filter": "the signature that templates call",
    "text/rendering/environment.py: join_filter": "the signature that templates call",
    "text/rendering/environment.py: replace_filter": "the signature that templates call",
    "text/rendering/environment.py: to_json": "the signature that templates call",
}
OWN_PROCESS = "text/rendering/"  # a program of its own, which imports nothing else of the package
KERNEL_USERS = ("native", "mindspore", "cpu_kernels.py")  # of executors/: who may import the C++ module

# Where each library that is not Python's own may be imported; "" is everywhere. Heavy ones stay behind one door.
LIBRARIES = {
    "numpy": ("",),
    "torch": ("executors/torch",),
    "mindspore": ("executors/mindspore",),
    "tokenizers": ("text",),
    "sentencepiece": ("text",),
    "jinja2": (OWN_PROCESS,),
    "huggingface_hub": ("checkpoint/hub.py",),
    "matplotlib": ("evaluate/heat_map.py",),
    "wonderwords": ("evaluate/words.py",),
    "typer": ("cli",),
    "rich": ("cli",),
}
HEAVY = (
    "torch",
    "mindspore",
    "transformers",
    "matplotlib",
    "wonderwords",
    "huggingface_hub",
    "tokenizers",
    "sentencepiece",
    "typer",
    "rich",
)


def place_of(path: Path) -> str:
    """Where a module lies in the package, such as `quant/codec.py`."""
    return path.relative_to(PACKAGE).as_posix()


def short_name(path: Path) -> str:
    """Where a file lies in the package, or in the repository if it is not of the package."""
    return place_of(path) if path.is_relative_to(PACKAGE) else path.relative_to(ROOT).as_posix()


def layer_of(path: Path) -> str:
    """The name in the import table that a module belongs to; "" for the package's own __init__."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def allowed_imports(page: str) -> dict[str, set[str]]:
    """For each layer, the layers that it may import, from the indented or fenced block of the page that begins with `cli`."""
    match = re.search(r"^(?: {4}|```\w*\n *)cli$.*?(?=\n\n|\n```|\Z)", page, re.MULTILINE | re.DOTALL)
    assert match, "docs/structure.md has no import table"
    lines = [line.strip() for line in match[0].splitlines() if line.strip() and not line.startswith("```")]
    rows = [line.split() for line in lines if not line.startswith("apart:")]
    table = {name: {below for row in rows[number + 1 :] for below in row} for number, row in enumerate(rows) for name in row}
    for line in (line for line in lines if line.startswith("apart:")):
        names, targets = line.removeprefix("apart:").split("->")
        allowed = {name for row in rows for name in row if re.search(rf"\b{name}\b", targets.split("only")[0])}
        table |= {name.strip(): allowed for name in names.split(",")}
    return table


TABLE = allowed_imports((ROOT / "docs" / "structure.md").read_text())


def imported_names(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports anywhere, inside functions too; `from a import b` may mean a.b, and gives both."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 1 and place_of(path).startswith(OWN_PROCESS):
                continue
            assert node.level == 0, f"{place_of(path)} imports relatively"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layers_imported(path: Path) -> set[str]:
    names = (name.split(".") for name in imported_names(path))
    return {parts[1] for parts in names if parts[0] == "minicpm4" and len(parts) > 1 and parts[1] != "__version__"}


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        else:
            yield from functions(node, prefix)


def test_the_table_is_the_design() -> None:
    assert TABLE["cli"] >= {"deploy", "engine", "executors", "quant", "checkpoint", "text", "model", "errors", "hardware"}
    assert TABLE["quant"] == TABLE["checkpoint"] == TABLE["text"] == {"model", "checks", "records", "fields", "errors", "hardware"}
    assert TABLE["errors"] == TABLE["hardware"] == set()
    assert TABLE["clean"] == {"checks", "records", "fields", "errors", "hardware"}


@pytest.mark.parametrize("path", MODULES, ids=place_of)
def test_imports_go_down(path: Path) -> None:
    layer = layer_of(path)
    if layer == "":
        assert layers_imported(path) <= {"engine", "errors"}, "the public surface shows the engine and the errors"
        return
    assert layer in TABLE, f"{layer} is not in the import table of docs/structure.md"
    allowed = TABLE[layer] | {layer}
    if any(path.is_relative_to(PACKAGE / "executors" / place) for place in KERNEL_USERS):
        allowed |= {"_native"}
    assert layers_imported(path) <= allowed


@pytest.mark.parametrize("path", sorted((PACKAGE / "executors").glob("*/*.py")), ids=place_of)
def test_executors_do_not_know_each_other(path: Path) -> None:
    others = {name.split(".")[2] for name in imported_names(path) if name.startswith("minicpm4.executors.")}
    assert others <= {"backend", "base", "cpu_kernels", "paths", "tracing", path.parent.name}


@pytest.mark.parametrize("path", MODULES, ids=place_of)
def test_libraries_are_imported_where_they_belong(path: Path) -> None:
    outside = {name.split(".")[0] for name in imported_names(path)} - sys.stdlib_module_names - {"minicpm4"}
    for name in outside:
        assert name in LIBRARIES, f"{name} is not a library that this project uses"
        assert place_of(path).startswith(LIBRARIES[name])


@pytest.mark.parametrize("path", MODULES, ids=place_of)
def test_only_hardware_reads_the_environment(path: Path) -> None:
    tree = ast.parse(path.read_text())
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv")}
    imported = {name for name in imported_names(path) if name in ("os.environ", "os.environb", "os.getenv")}
    assert place_of(path) == "hardware.py" or not read | imported


@pytest.mark.parametrize("path", EVERYTHING, ids=short_name)
def test_files_are_small_and_say_what_they_are_for(path: Path) -> None:
    text = path.read_text()
    limit = MAX_KERNEL_LINES if path in (*NATIVE, *KERNELS) else MAX_LINES
    assert len(text.splitlines()) <= limit or short_name(path) in LARGE_FILES
    if path.suffix == ".py":
        assert ast.get_docstring(ast.parse(text)) or not text.strip(), "a module opens with what it is for"
    elif not path.with_suffix(".h").exists() or path.suffix == ".h":  # a header speaks for its unit
        assert text.startswith("//"), "a unit opens with what it is for"


def long_functions(path: Path) -> set[str]:
    limit = MAX_KERNEL_FUNCTION if path in KERNELS else MAX_FUNCTION
    found = functions(ast.parse(path.read_text()))
    return {f"{short_name(path)}: {name}" for name, node in found if (node.end_lineno or 0) - node.lineno >= limit}


def many_positional(path: Path) -> set[str]:
    found = set()
    for name, node in functions(ast.parse(path.read_text())):
        positional = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args) if argument.arg not in ("self", "cls")]
        if len(positional) > MAX_POSITIONAL:
            found.add(f"{short_name(path)}: {name}")
    return found


@pytest.mark.parametrize("path", [*MODULES, *TEST_MODULES], ids=short_name)
def test_functions_are_short(path: Path) -> None:
    assert long_functions(path) <= LONG_FUNCTIONS.keys()


@pytest.mark.parametrize("path", [path for path in MODULES if layer_of(path) != "cli"], ids=short_name)
def test_functions_take_few_positional_parameters(path: Path) -> None:
    """Not so in cli/: there a function's parameters are a command's options, which typer gives by name."""
    assert many_positional(path) <= MANY_POSITIONAL.keys()


@pytest.mark.parametrize("path", NATIVE, ids=short_name)
def test_native_functions_are_short(path: Path) -> None:
    """A function ends at the first closing brace that stands as far in as the line that opened it."""
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        opened = re.match(r"^( {0,2})[A-Za-z].*\).*\{$", line)
        if opened and not re.match(r"^ *(if|for|while|switch|namespace)\b", line):
            length = next(n for n, later in enumerate(lines[number:], start=1) if later.startswith(opened[1] + "}"))
            assert length <= MAX_KERNEL_FUNCTION, f"{line.strip()} is longer than {MAX_KERNEL_FUNCTION} lines"


def test_exceptions_are_still_needed() -> None:
    assert LONG_FUNCTIONS.keys() <= set().union(*map(long_functions, [*MODULES, *TEST_MODULES]))
    assert MANY_POSITIONAL.keys() <= set().union(*map(many_positional, MODULES))
    assert LARGE_FILES.keys() <= {short_name(path) for path in EVERYTHING if len(path.read_text().splitlines()) > MAX_LINES}


PACKAGES = [
    pytest.param(path, marks=[pytest.mark.mindspore] if path.parent.name == "mindspore" else [], id=place_of(path))
    for path in MODULES
    if path.name == "__init__.py"
]


@pytest.mark.parametrize("path", PACKAGES)
def test_the_public_surface_is_small_and_real(path: Path) -> None:
    dotted = ".".join(("minicpm4", *path.relative_to(PACKAGE).parts[:-1]))
    module = importlib.import_module(dotted)
    public = getattr(module, "__all__", [])
    assert len(public) <= MAX_PUBLIC_NAMES
    assert len(set(public)) == len(public)
    assert all(hasattr(module, name) for name in public)


def test_the_stub_of_the_native_module_tells_the_truth() -> None:
    native = importlib.import_module("minicpm4._native")
    tree = ast.parse((PACKAGE / "_native.pyi").read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert hasattr(native, node.name)
        if isinstance(node, ast.ClassDef):
            members = {
                getattr(item, "name", None) or item.targets[0].id for item in node.body if isinstance(item, ast.FunctionDef | ast.Assign)
            }
            offered = {name for name in vars(getattr(native, node.name)) if not name.startswith(("_", "@"))}
            assert members - {"__init__"} == offered - {"name", "value"}


IMPORT_AND_LIST = """
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(event) if event.startswith("socket.") else None)
import minicpm4
print(*sorted({name.split(".")[0] for name in sys.modules}))
print(*opened)
"""


def test_importing_the_package_is_light_and_stays_off_the_network() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORT_AND_LIST], capture_output=True, text=True, check=True)
    modules, opened = run.stdout.splitlines()
    assert not set(HEAVY) & set(modules.split())
    assert opened == ""
