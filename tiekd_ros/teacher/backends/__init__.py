"""Backends by kind. Each is a file: its settings, which build it, and the backend itself.

A new one is a file here and a row of `BACKENDS`; `tiekd teacher serve`, Ray's application and
ensembles take its options from its settings' fields. All of these modules are imported for a list
of options (`tiekd --help`): what is large, torch for example, they import where they use it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from typing import Any

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import setting, setting_info
from tiekd_ros.teacher.backend import BackendSettings

BACKENDS = {
    "huggingface": "HuggingFaceSettings",
    "onnx": "OnnxSettings",
    "ensemble": "EnsembleSettings",
    "recorded": "RecordedSettings",
    "synthetic": "SyntheticSettings",
}
"""Each kind of backend, which is its module's name, and the class of its settings there."""

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def settings_of(kind: str) -> type[BackendSettings]:
    """Return the settings' class of a kind of backend.

    Raises:
        InvalidSettingError: there is no such kind.
    """
    if kind not in BACKENDS:
        raise InvalidSettingError(
            f"unknown teacher backend {kind!r}: there are {', '.join(BACKENDS)}"
        )
    module = importlib.import_module(f"{__name__}.{kind}")
    found: type[BackendSettings] = getattr(module, BACKENDS[kind])
    return found


def read_backend(text: str, options: Mapping[str, Any] | None = None) -> BackendSettings:
    """Read `KIND` or `KIND:ARGUMENT`, for example `huggingface:ORG/NAME`, and further options.

    Args:
        text: the backend; its argument is the option that the kind's `ARGUMENT` names.
        options: values of options by name, those that were given.

    Raises:
        InvalidSettingError: there is no such kind, an option is not one of its, contradicts the
            argument or has a bad value, or one that it needs is missing.
    """
    kind, _, argument = text.strip().partition(":")
    kind_of_settings = settings_of(kind)
    given = dict(options or {})
    if argument:
        name = kind_of_settings.ARGUMENT
        value = value_from_text(backend_options()[name], argument)
        if given.setdefault(name, value) != value:
            raise InvalidSettingError(
                f"{text} and {name}={given[name]} (--{name}) say different things; give one"
            )
    return kind_of_settings.from_options(kind, given)


@functools.cache
def backend_options() -> dict[str, dataclasses.Field[Any]]:
    """Return a field for each option of any kind; its description names the kinds that have it.

    An option of several kinds has the same type and default in all of them.
    """
    having: dict[str, dict[str, dataclasses.Field[Any]]] = {}
    for kind in BACKENDS:
        for field in dataclasses.fields(settings_of(kind)):
            if isinstance(field.default, bool | int | float | str):
                having.setdefault(field.name, {})[kind] = field
    merged = [(name, _merged(by_kind)) for name, by_kind in having.items()]
    made = dataclasses.make_dataclass("BackendOptions", [(name, Any, one) for name, one in merged])
    return {field.name: field for field in dataclasses.fields(made)}


def value_from_text(field: dataclasses.Field[Any], text: str) -> Any:
    """Return a setting's value, of its type, from text.

    Raises:
        InvalidSettingError: the text is no such value.
    """
    kind: Any = type(field.default)
    if kind is str:
        return text
    try:
        return _BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise InvalidSettingError(f"{field.name} must be {kind.__name__}, got {text!r}") from None


def _merged(by_kind: Mapping[str, dataclasses.Field[Any]]) -> Any:
    """Return the field of an option of these kinds, as `setting` makes it."""
    first, *_ = by_kind.values()
    kinds: dict[str, list[str]] = {}
    for kind, field in by_kind.items():
        kinds.setdefault(setting_info(field).description, []).append(kind)
    text = "; ".join(f"{', '.join(names)}: {each}" for each, names in kinds.items())
    info = dataclasses.replace(setting_info(first), description=text)
    return setting(first.default, **dataclasses.asdict(info))
