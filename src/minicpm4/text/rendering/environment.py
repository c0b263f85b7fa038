"""Jinja2's sandbox, set up as the `transformers` library does for chat templates, over text that remembers where it came from.

Templates compute what Jinja2 computes. What is added here only keeps the marks of `marked.Marked` alive: through operators, filters,
joined text and printed values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import wraps
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from .marked import Marked, as_text, concat, follow, foreign, is_foreign, join, percent_formatted, plain, unmarked

# Filters that pass values on, or do nothing to text but by its own methods. All others see plain text.
FOLLOWED_FILTERS = frozenset((
    "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items",
    "last", "length", "list", "lower", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "round", "select",
    "selectattr", "slice", "sort", "sum", "trim", "unique", "upper", "wordcount",
))  # fmt: skip


class Refusal(jinja2.TemplateError):
    """The template called raise_exception."""


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks an assistant's words for training; here it is a scope and nothing else."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


class SafeNamespace(Namespace):
    """A namespace whose names do not begin with an underscore."""

    def __init__(*values: Any, **named: Any) -> None:
        self, values = values[0], values[1:]
        attributes = dict(*values, **named)
        for name in attributes:
            check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        check_name(name)
        super().__setitem__(name, value)


def check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace's name may not begin with an underscore: {name!r:.80}")


class SafeDict:
    """`dict(...)` and `dict.fromkeys(...)`, without the type behind them."""

    def __call__(self, *values: Any, **named: Any) -> dict[Any, Any]:
        return dict(*values, **named)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:
        return dict.fromkeys(*values)


class Generator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.join_values((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Environment(ImmutableSandboxedEnvironment):
    code_generator_class = Generator
    intercepted_binops = frozenset(("%",))
    concat = staticmethod(concat)

    def getattr(self, obj: Any, attribute: str) -> Any:
        return super().getattr(followed(obj), attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(followed(obj), argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, str):
            return Marked(*percent_formatted(left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *values: Any, **named: Any) -> Any:
        result = super().call(__context, __obj, *values, **named)
        is_own = isinstance(__obj, Macro | LoopContext) or not isinstance(result, str) or isinstance(result, Marked)
        return foreign(result) if not is_own and is_foreign([*values, *named.values()]) else result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        pattern = value.__self__

        def formatted(*values: Any, **named: Any) -> str:
            text = plain(wrapped(*values, **named))
            return Marked(text, follow(text, pattern, [*values, *named.values()]))

        return formatted

    def join_values(self, values: Iterable[Any]) -> str:
        """What `~` does."""
        return concat([as_text(value) for value in values])


def followed(value: Any) -> Any:
    """A template's own text with marks, so that what its methods are given is followed."""
    return Marked(value) if type(value) is str else value


def on_plain_text(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that sees text without marks, and whose text counts as the messages' if any that it saw did."""

    @wraps(function)
    def filter_(*values: Any, **named: Any) -> Any:
        result = function(*unmarked(values), **unmarked(named))
        return foreign(result) if isinstance(result, str) and is_foreign([values, named]) else result

    return filter_


@jinja2.pass_environment
def join_filter(environment: Environment, value: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return join(as_text(d), [as_text(item) for item in value])


def replace_filter(s: str, old: str, new: str, count: int | None = None) -> str:
    return str(followed(as_text(s)).replace(as_text(old), as_text(new), -1 if count is None else count))


def format_filter(value: str, *values: Any, **named: Any) -> str:
    if values and named:
        raise jinja2.exceptions.FilterArgumentError("can't handle positional and keyword arguments at the same time")
    return Marked(*percent_formatted(as_text(value), named or values))


def indent_filter(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """Jinja2's, line by line: the first is indented where asked for, empty ones where `blank`."""
    if not isinstance(s, str):
        raise TypeError(f"indent takes text, not {type(s).__name__}")
    indention = width if isinstance(width, str) else " " * width
    lines = (as_text(s) + "\n").splitlines()
    rest = [indention + line if line or blank else line for line in lines[1:]]
    text = join("\n", [lines[0], *rest])
    return indention + text if first else text


def to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    """Not escaped for HTML, and not ASCII only, unless a template asks for it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: object) -> None:
    raise Refusal(str(message))


def strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def make_environment() -> Environment:
    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols], finalize=printed)
    own = {"join": join_filter, "format": format_filter, "indent": indent_filter, "replace": replace_filter, "string": as_text}
    filters = {**environment.filters, "tojson": to_json}
    environment.filters |= {name: on_plain_text(filter_) for name, filter_ in filters.items() if name not in FOLLOWED_FILTERS} | own
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": SafeDict(),
        "namespace": SafeNamespace,
    }
    return environment


def printed(value: Any) -> Any:
    """What stands for a value where a template prints it; Jinja2 makes text of the rest."""
    return as_text(value) if is_foreign(value) else value
