"""Options and output that verbs of the `tiekd` command share."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tiekd_ros.core.settings import Settings, setting_info

State = Annotated[
    str, typer.Option("--state", help="State folder.", show_default="$XDG_STATE_HOME/tiekd")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]

Data = Annotated[Path, typer.Option("--data", help="The data set's folder.", metavar="DIR")]
Kind = Annotated[
    str,
    typer.Option(
        "--kind",
        help="kitti, nyu, rgbd (images/, depth/), images, frames (a state folder), or auto.",
    ),
]
Split = Annotated[
    Path | None,
    typer.Option(
        "--split",
        help="File of lines `image depth focal` (KITTI, NYU; else the usual one: `label` takes the "
        "training images, `evaluate` the test images), or in folders one image name a line.",
        metavar="FILE",
    ),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out and list what cannot be used.")
]

console = Console()


def plain(text: str) -> None:
    """Print text as it is: nothing highlighted, no markup, wrapped by the terminal alone."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_reasons(reasons: Mapping[str, str]) -> None:
    """Print items that cannot be used, one a line, each with the reason."""
    for name, reason in reasons.items():
        plain(f"{name}: {reason}")


@contextlib.contextmanager
def progress(text: str, shown_on: Console | None) -> Iterator[Callable[[int], Callable[[], None]]]:
    """Show a bar; yields a function that takes the total and gives the one to advance with."""
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=shown_on, disable=shown_on is None) as bar:

        def track(total: int) -> Callable[[], None]:
            task = bar.add_task(text, total=total)
            return lambda: bar.advance(task)

        yield track


def with_settings(
    parameter: str,
    kind: type[Settings],
    panel: str,
    only: Collection[str] = (),
    **defaults: Any,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a verb: in place of its `parameter` it takes an option for each of these settings.

    `max_batch` becomes `--max-batch`, `period_s` becomes `--period`; a boolean is a flag that
    turns the setting on. Values are checked by the settings themselves.

    Args:
        parameter: the verb's parameter that gets the settings.
        kind: which they are.
        panel: heading of their part of the help.
        only: the settings that become options; () = all. The others keep their defaults.
        defaults: values where the command's default is another than the setting's.
    """
    fields = [field for field in dataclasses.fields(kind) if not only or field.name in only]
    names = {field.name: field.name.removesuffix("_s") for field in fields}
    options = [
        inspect.Parameter(
            names[field.name],
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(field.name, field.default),
            annotation=Annotated[type(field.default), _option(field, panel, field.default != "")],
        )
        for field in fields
    ]

    def build(**values: Any) -> Settings:
        return kind(**{name: values[option] for name, option in names.items()})

    return in_place_of(parameter, options, build)


def with_given_settings(
    parameter: str,
    fields: Sequence[dataclasses.Field[Any]],
    panel: str,
    names: Mapping[str, str] | None = None,
    unset: str = "",
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a verb as `with_settings`; its `parameter` gets the options that were given.

    Args:
        parameter: the verb's parameter that gets a dict of values by the settings' names.
        fields: the settings that become options.
        panel: heading of their part of the help.
        names: of options that are not called as their settings, by setting.
        unset: what the help shows for an option that is not given; "" = the setting's default.
    """
    names = names or {}
    settings = {
        names.get(field.name, field.name.removesuffix("_s")): field.name for field in fields
    }
    options = [
        inspect.Parameter(
            option,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                type(field.default) | None,
                _option(field, panel, unset or str(field.default) or False, option),
            ],
        )
        for option, field in zip(settings, fields, strict=True)
    ]

    def build(**values: Any) -> dict[str, Any]:
        return {settings[option]: value for option, value in values.items() if value is not None}

    return in_place_of(parameter, options, build)


def in_place_of(
    parameter: str, options: Sequence[inspect.Parameter], build: Callable[..., Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a verb: in place of its `parameter` it takes these options.

    Args:
        parameter: the verb's parameter.
        options: keyword-only parameters, annotated for typer.
        build: makes the parameter's value from the options' values, its keyword arguments.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(verb)
        def command(**values: Any) -> None:
            chosen = {option.name: values.pop(option.name) for option in options}
            verb(**values, **{parameter: build(**chosen)})

        own = inspect.signature(verb, eval_str=True).parameters
        rest = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for each in own.values()
            if each.name != parameter
        ]
        parameters = [*rest, *options]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _option(field: dataclasses.Field[Any], panel: str, shown: bool | str, name: str = "") -> Any:
    info = setting_info(field)
    has_range = info.minimum is not None or info.maximum is not None
    told = info.allowed() if has_range else info.unit
    unit = f" ({told})" if told else ""
    choices = f" ({', '.join(info.choices)})" if info.choices else ""
    flag = "--" + (name or field.name.removesuffix("_s")).replace("_", "-")
    text = f"{info.description[:1].upper()}{info.description[1:]}{choices}{unit}."
    return typer.Option(flag, help=text, rich_help_panel=panel, show_default=shown)
