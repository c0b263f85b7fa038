"""Lets commands share groups of options: a group is a function whose parameters are options and whose result is a config."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def grouped(**groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that takes its own options and those of the groups; each group's result reaches it under the group's name.

    The command line is read off signatures, so the returned command has one that holds all options.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        parts = {name: inspect.signature(group, eval_str=True).parameters for name, group in groups.items()}
        everything = {name: parameter for name, parameter in own.items() if name not in groups}
        names = [*everything, *(flag for parameters in parts.values() for flag in parameters)]
        assert len(names) == len(set(names)), f"{command.__name__}: an option is in two groups"
        for parameters in parts.values():
            everything |= parameters

        @functools.wraps(command)
        def run(**flags: Any) -> None:
            made = {name: groups[name](**{flag: flags.pop(flag) for flag in parameters}) for name, parameters in parts.items()}
            command(**flags, **made)

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in everything.values()]
        )
        run.__annotations__ = {name: parameter.annotation for name, parameter in everything.items()}
        del run.__dict__["__wrapped__"]  # it would lead readers of the signature back to the command's own
        return run

    return decorate
