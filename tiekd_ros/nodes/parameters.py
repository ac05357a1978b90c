"""ROS parameters made from settings: the same names, ranges and descriptions, checked once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.settings import SettingInfo, Settings, setting_info

_S = TypeVar("_S", bound=Settings)


class SettingsParameters:
    """Declares groups of settings on a node and follows their changes.

    Args:
        node: whose parameters these are.
        apply: called with (group, new settings) after a change was checked.
    """

    def __init__(self, node: Node, apply: Callable[[str, Settings], None]) -> None:
        self._node = node
        self._apply = apply
        self._groups: dict[str, Settings] = {}
        node.add_on_set_parameters_callback(self._on_set)

    def declare(self, group: str, kind: type[_S], *, read_only: bool = False) -> _S:
        """Declare the fields of `kind` as `group.field` (or `field` where group is empty).

        With `read_only` all of them are, whatever the fields say.

        Raises:
            InvalidSettingError: a value given at start does not fit; names the parameter.
        """
        values: dict[str, Any] = {}
        for field in dataclasses.fields(kind):
            name = _name(group, field.name)
            try:
                descriptor = _descriptor(field)
                descriptor.read_only |= read_only
                parameter = self._node.declare_parameter(name, field.default, descriptor)
            except ParameterException as error:
                raise InvalidSettingError(f"parameter {name}: {error}") from error
            values[field.name] = parameter.value
        settings = kind(**values)
        self._groups[group] = settings
        return settings

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        changed: dict[str, dict[str, Any]] = {}
        for parameter in parameters:
            group, _, field = parameter.name.rpartition(".")
            if group in self._groups and hasattr(self._groups[group], field):
                changed.setdefault(group, {})[field] = parameter.value
        try:
            new = {g: dataclasses.replace(self._groups[g], **v) for g, v in changed.items()}
        except InvalidSettingError as error:
            return SetParametersResult(successful=False, reason=str(error))
        for group, settings in new.items():
            self._groups[group] = settings
            self._apply(group, settings)
        return SetParametersResult(successful=True)


def _name(group: str, field: str) -> str:
    return f"{group}.{field}" if group else field


def _descriptor(field: dataclasses.Field[Any]) -> ParameterDescriptor:
    info: SettingInfo = setting_info(field)
    unit = f" [{info.unit}]" if info.unit else ""
    descriptor = ParameterDescriptor(
        name=field.name, description=info.description + unit, read_only=info.read_only
    )
    if info.choices:
        descriptor.additional_constraints = info.allowed()
    if info.minimum is not None and info.maximum is not None:
        low, high = info.minimum, info.maximum
        if type(field.default) is int:
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
        elif type(field.default) is float:
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(low), to_value=float(high))
            ]
    return descriptor
