"""Options that commands share, each declared once, and how groups of them become the configs of the layers below.

Every option but --version and --help can be set by an environment variable, MINICPM4_ and its long name; a flag wins over it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any

import typer

from minicpm4.engine import LoadOptions, SamplingParams
from minicpm4.errors import RequestError
from minicpm4.fields import flags_of, option_of, types_of
from minicpm4.hardware import setting

PREFIX = "MINICPM4_"


def option(*names: str, help: str, metavar: str | None = None) -> Any:
    """An option that also reads MINICPM4_<LONG NAME>."""
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    return typer.Option(*names, help=help, metavar=metavar, envvar=PREFIX + long[2:].replace("-", "_").upper())


def options_of(config: type, *names: str, only_given: bool = False) -> Callable[..., Any]:
    """A group (see `cli.grouped`) whose options are fields of a config, in this order; all that have an `Option` where none are named.

    Its result is the config; with only_given a dictionary of what was given, each checked as the config does.
    """
    chosen = {one.name: one for one in fields(config) if option_of(one) and (not names or one.name in names)}
    parameters = [flag_of(config, chosen[name], is_optional=only_given) for name in names or chosen]

    def group(**values: Any) -> Any:
        if not only_given:
            return config(**values)
        given = {name: value for name, value in values.items() if value is not None}
        for name, value in given.items():
            try:
                config(**{name: value})
            except RequestError as error:
                raise typer.BadParameter(error.message, param_hint=flags_of(config, name)[-1]) from error
        return given

    group.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return group


def flag_of(config: type, one: Field[Any], *, is_optional: bool) -> inspect.Parameter:
    """The command line's parameter for a field."""
    found, (kind, may_be_none) = option_of(one), types_of(config)[one.name]
    assert found is not None
    hint = kind | None if is_optional or may_be_none else kind
    annotation = Annotated[hint, option(*flags_of(config, one.name), help=found.help)]  # type: ignore[valid-type]
    default = None if is_optional else one.default
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


ModelArgument = Annotated[str, typer.Argument(help="'default', or a hub id (owner/name).", envvar=f"{PREFIX}MODEL")]
Revision = Annotated[str | None, option("--revision", help="Branch, tag or commit of a hub model.")]
Offline = Annotated[bool, option("--offline", help="Use what is on disk; never the network.")]
AsJson = Annotated[bool, option("--json", help="Print one JSON object instead of text.")]

Prompt = Annotated[str | None, option("-p", "--prompt", help="The text; '-' reads standard input.", metavar="TEXT")]
Stop = Annotated[
    list[str] | None,  # the variable is read here, line by line: typer would split it at every space
    typer.Option("--stop", help=f"Stop before this text; may be given several times, or one a line in {PREFIX}STOP.", metavar="TEXT"),
]
AddBos = Annotated[
    bool | None, option("--add-bos/--no-add-bos", help="Start with the BOS token; by default as the model's tokenizer does.")
]


load_options = options_of(LoadOptions)
sampling_fields = options_of(
    SamplingParams,
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty",
    only_given=True,
)  # fmt: skip


def sampling_changes(stop: Stop = None, **values: Any) -> dict[str, Any]:
    """The group of options that change the model's own SamplingParams: the fields that were given. Wrong usage where one cannot be."""
    given = stop or [line for line in (setting("stop") or "").splitlines() if line]
    try:
        SamplingParams(stop=tuple(given))
    except RequestError as error:
        raise typer.BadParameter(error.message, param_hint="--stop") from error
    return {**sampling_fields(**values), **({"stop": given} if given else {})}


sampling_changes.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *inspect.signature(sampling_fields).parameters.values(),
        inspect.signature(sampling_changes, eval_str=True).parameters["stop"].replace(kind=inspect.Parameter.KEYWORD_ONLY),
    ]
)


def read_prompt(prompt: str | None) -> str:
    """The prompt's text: `-`, or none where standard input is not a terminal, reads standard input."""
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        return sys.stdin.buffer.read().decode(errors="replace")
    if prompt is None:
        raise RequestError("there is no prompt", hint="give -p TEXT, or -p - to read standard input")
    return prompt
