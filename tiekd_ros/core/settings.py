"""Settings: frozen dataclasses that cannot exist in an invalid state.

A setting has one home: a field made by `setting()` in a `Settings` dataclass of the room
that uses it. ROS parameters and command-line options are made from the field's metadata
(description, unit, range, choices), so that each is described and checked once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tiekd_ros.core.errors import InvalidSettingError

_KEY = "tiekd_setting"
_T = TypeVar("_T", bound="Settings")


class TextEnum(str, enum.Enum):
    """An enumeration whose members are their texts, in files and messages too."""

    def __str__(self) -> str:
        return str(self.value)


@dataclasses.dataclass(frozen=True)
class SettingInfo:
    """Description, range and choices of one setting."""

    description: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = False

    def allowed(self) -> str:
        """Return the allowed values, in words."""
        if self.choices:
            return "one of " + ", ".join(repr(c) for c in self.choices)
        unit = f" {self.unit}" if self.unit else ""
        if self.minimum is not None and self.maximum is not None:
            return f"between {_plain(self.minimum)} and {_plain(self.maximum)}{unit}"
        if self.minimum is not None:
            return f"at least {_plain(self.minimum)}{unit}"
        if self.maximum is not None:
            return f"at most {_plain(self.maximum)}{unit}"
        return f"a finite number{unit}"


def _plain(limit: float) -> str:
    return f"{limit:.0f}" if limit == int(limit) else f"{limit:g}"


def setting(
    default: Any,
    description: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] = (),
    read_only: bool = False,
) -> Any:
    """Declare one field of a `Settings` dataclass.

    Types: bool, int, float and str, as the default's. Ranges are inclusive.
    """
    info = SettingInfo(description, unit, minimum, maximum, tuple(choices), read_only)
    return dataclasses.field(default=default, metadata={_KEY: info})


def setting_info(field: dataclasses.Field[Any]) -> SettingInfo:
    """Return the description of a field that `setting()` made."""
    info: SettingInfo = field.metadata[_KEY]
    return info


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of all settings: checks every field on creation.

    Raises:
        InvalidSettingError: a value has the wrong type or lies outside its range; the
            message names the setting, the value received and what would do.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _checked(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Check what holds between fields; override where something does."""

    @classmethod
    def from_mapping(cls: type[_T], values: Mapping[str, Any]) -> _T:
        """Build from a mapping of names to values; unknown names are refused."""
        names = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise InvalidSettingError(
                f"unknown setting {unknown[0]!r}: known are {', '.join(names)}"
            )
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values by name, fit for JSON."""
        return dataclasses.asdict(self)


_G = TypeVar("_G", bound="SettingGroups")


@dataclasses.dataclass(frozen=True)
class SettingGroups:
    """Base of dataclasses whose fields are groups of settings, each with a default.

    Written as JSON it is `{group: {name: value}}`, and so crosses process borders.
    """

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return plain values by group and name, fit for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls: type[_G], groups: Mapping[str, Mapping[str, Any]]) -> _G:
        """Build from groups of values; what is missing keeps its default.

        Raises:
            InvalidSettingError: an unknown group or name, or a bad value.
        """
        return cls().changed(groups)

    def changed(self: _G, groups: Mapping[str, Mapping[str, Any]]) -> _G:
        """Return a copy with these values in place of its own; errors as `from_mapping`."""
        kinds = self.groups()
        unknown = sorted(set(groups) - set(kinds))
        if unknown:
            raise InvalidSettingError(
                f"unknown group of settings {unknown[0]!r}: known are {', '.join(kinds)}"
            )
        changes = {}
        for name, values in groups.items():
            with in_group(name, kinds[name]):
                changes[name] = kinds[name].from_mapping(
                    {**getattr(self, name).as_dict(), **values}
                )
        return dataclasses.replace(self, **changes)

    @classmethod
    def groups(cls) -> dict[str, type[Any]]:
        """Return the groups' names and the settings that each is made of."""
        default = cls()
        return {f.name: type(getattr(default, f.name)) for f in dataclasses.fields(cls)}


@contextlib.contextmanager
def in_group(group: str, kind: type[Settings]) -> Iterator[None]:
    """Add the group's name to an InvalidSettingError of the block: `labels.retry_s must be ...`."""
    try:
        yield
    except InvalidSettingError as error:
        if not group:
            raise
        text = str(error)
        names = {field.name for field in dataclasses.fields(kind)}
        mark = "." if text.partition(" ")[0] in names else ": "
        raise InvalidSettingError(f"{group}{mark}{text}") from error


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    info = setting_info(field)
    kind: Any = type(field.default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise InvalidSettingError(
            f"{field.name} must be {kind.__name__}, got {value!r} ({type(value).__name__})"
        )
    if info.choices and value not in info.choices:
        raise InvalidSettingError(f"{field.name} must be {info.allowed()}, got {value!r}")
    if kind in (int, float):
        low = info.minimum is not None and value < info.minimum
        high = info.maximum is not None and value > info.maximum
        if low or high or not math.isfinite(value):
            raise InvalidSettingError(f"{field.name} must be {info.allowed()}, got {value!r}")
    return value
