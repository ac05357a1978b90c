"""Options and output that verbs of the `tiekd` command share."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import Settings, setting_info
from tiekd_ros.teacher.settings import TLS_SETTINGS, ClientSettings

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


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Raise InvalidSettingError unless `value` is among `known`."""
    if value not in known:
        choices = ", ".join(filter(None, known))
        raise InvalidSettingError(f"{name} must be one of {choices}, got {value!r}")


def read_size(text: str) -> dict[str, int]:
    """Return height and width of --input-size; nothing where it is not given."""
    found = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text.strip())
    if text and found is None:
        raise InvalidSettingError(f"--input-size must be HEIGHTxWIDTH like 352x1216, got {text!r}")
    return {"height": int(found[1]), "width": int(found[2])} if found else {}


def read_groups(settings: str) -> dict[str, dict[str, Any]]:
    """Return the JSON of --settings, {group: {name: value}}."""
    try:
        return {str(group): dict(values) for group, values in json.loads(settings).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidSettingError(
            f'settings must be JSON like {{"train": {{"iterations": 500}}}}, got {settings!r}'
        ) from error


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
    make: Callable[..., Settings] | None = None,
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
        make: makes the settings of their values, by name; None = `kind` itself.
        defaults: values where the command's default is another than the setting's.
    """
    options = {
        field.name: inspect.Parameter(
            field.name.removesuffix("_s"),
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(field.name, field.default),
            annotation=Annotated[type(field.default), _option(field, panel, field.default != "")],
        )
        for field in dataclasses.fields(kind)
        if not only or field.name in only
    }
    return in_place_of(parameter, options, make or kind)


def with_connection(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a verb: its `client` gets the settings of a connection to a teacher.

    What only TLS uses, such as --ca, turns TLS on.

    Args:
        defaults: as for `with_settings`.
    """
    only = (*TLS_SETTINGS, "tls", "token_file", "plaintext_token", "timeout_s")

    def connection(**values: Any) -> ClientSettings:
        values["tls"] = values["tls"] or any(values[name] for name in TLS_SETTINGS)
        return ClientSettings(**values)

    return with_settings(
        "client", ClientSettings, "Connection", only=only, make=connection, **defaults
    )


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
    options = {}
    for field in fields:
        option = names.get(field.name, field.name.removesuffix("_s"))
        shown = unset or str(field.default) or False
        options[field.name] = inspect.Parameter(
            option,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[type(field.default) | None, _option(field, panel, shown, option)],
        )

    def build(**values: Any) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}

    return in_place_of(parameter, options, build)


def in_place_of(
    parameter: str, options: Mapping[str, inspect.Parameter], build: Callable[..., Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a verb: in place of its `parameter` it takes these options.

    Args:
        parameter: the verb's parameter.
        options: keyword-only parameters, annotated for typer, by the names that `build` has.
        build: makes the parameter's value from the options' values, its keyword arguments.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(verb)
        def command(**values: Any) -> None:
            chosen = {name: values.pop(option.name) for name, option in options.items()}
            verb(**values, **{parameter: build(**chosen)})

        own = inspect.signature(verb, eval_str=True).parameters
        rest = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for each in own.values()
            if each.name != parameter
        ]
        parameters = [*rest, *options.values()]
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
