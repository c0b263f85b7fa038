"""Options said once: a field of a dataclass carries its documentation, what it may be, and its flags.

The checks of values are here; the command line and its environment variables are made of the same fields (`cli.options`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import Field, dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints

from minicpm4.errors import ConfigError, MiniCPMError


@dataclass(frozen=True)
class Option:
    """help: a sentence for the user. within: the least and the most of a number; excludes_low: above the least. choices: of a text; any
    where empty. flags: on the command line, where they are not the field's name."""

    help: str
    within: tuple[float, float] | None = None
    excludes_low: bool = False
    choices: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


def option(
    default: Any,
    help: str,
    *,
    within: tuple[float, float] | None = None,
    excludes_low: bool = False,
    choices: Collection[str] = (),
    flags: Collection[str] = (),
) -> Any:
    """A field with its `Option`."""
    return field(default=default, metadata={"option": Option(help, within, excludes_low, tuple(choices), tuple(flags))})


def option_of(one: Field[Any]) -> Option | None:
    """The field's `Option`; None where it was declared without."""
    found: Option | None = one.metadata.get("option")
    return found


@cache
def types_of(config: Any) -> dict[str, tuple[type, bool]]:
    """Each field's type, and whether it may be None."""
    hints = get_type_hints(config)
    found = {}
    for one in fields(config):
        parts = [part for part in get_args(hints[one.name]) if part is not type(None)]
        is_optional = type(None) in get_args(hints[one.name])
        found[one.name] = (parts[0] if is_optional else hints[one.name], is_optional)
    return found


def check_options(options: Any, *, error: type[MiniCPMError] = ConfigError) -> None:
    """The error unless every field that has an `Option` is of its type and what it may be. numpy's numbers count as such."""
    types = types_of(type(options))  # type: ignore[arg-type]
    for one in fields(options):
        found, value = option_of(one), getattr(options, one.name)
        kind, is_optional = types[one.name]
        if found is None or (value is None and is_optional):
            continue
        if kind is bool and not isinstance(value, bool):
            raise error(f"{one.name} is {value!r:.80}, expected True or False", hint=f"correct {one.name}")
        if kind is str and (not isinstance(value, str) or (found.choices and value not in found.choices)):
            remedy = f"choose one of {', '.join(found.choices)}" if found.choices else f"correct {one.name}"
            raise error(f"{one.name} is {value!r:.80}, expected {'one of its choices' if found.choices else 'text'}", hint=remedy)
        if found.within is not None and kind in (int, float):
            check_number(one.name, value, found.within, is_whole=kind is int, excludes_low=found.excludes_low, error=error)


def check_number(
    name: str,
    value: object,
    within: tuple[float, float],
    *,
    is_whole: bool = False,
    excludes_low: bool = False,
    error: type[MiniCPMError] = ConfigError,
) -> None:
    """The error unless the value is a number from the first to the second of `within`, above the first where that is excluded."""
    low, high = within
    if isinstance(value, Integral if is_whole else Real) and not isinstance(value, bool):
        number = int(value) if isinstance(value, Integral) else float(value)
        if low <= number <= high and not (excludes_low and number == low):  # false for NaN
            return
    kind = "a whole number" if is_whole else "a number"
    low_text, high_text = (f"{bound:g}" if isinstance(bound, float) else str(bound) for bound in within)
    span = f"above {low_text} and at most {high_text}" if excludes_low else f"from {low_text} to {high_text}"
    raise error(f"{name} is {value!r:.80}, expected {kind} {span}", hint=f"correct {name}")


def flags_of(config: type, name: str) -> tuple[str, ...]:
    """A field's flags: those that its `Option` names, else its name; of a question "--yes/--no"."""
    [one] = [one for one in fields(config) if one.name == name]
    found, flag = option_of(one), name.replace("_", "-")
    if found is not None and found.flags:
        return found.flags
    return (f"--{flag}/--no-{flag}",) if types_of(config)[name][0] is bool else (f"--{flag}",)


def words_of(options: Any) -> list[str]:
    """The command line's words that ask for these options: of those fields that have an `Option` and are not at their defaults."""
    words = list[str]()
    for one in fields(options):
        value = getattr(options, one.name)
        if option_of(one) is None or value == one.default or value is None:
            continue
        yes, _, no = flags_of(type(options), one.name)[-1].partition("/")
        words += [yes if value else no] if isinstance(value, bool) else [yes, str(value)]
    return words
