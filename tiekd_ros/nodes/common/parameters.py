"""ROS parameters made from settings: the same names, ranges and descriptions, checked once."""

from __future__ import annotations

import dataclasses
import difflib
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import ParameterException, ParameterNotDeclaredException
from rclpy.node import Node
from rclpy.parameter import Parameter

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import SettingInfo, Settings, in_group, setting_info

_S = TypeVar("_S", bound=Settings)
_OF_EVERY_NODE = ("use_sim_time", "start_type_description_service")
_QOS_OVERRIDES = "qos_overrides."
_QOS_OF_RCLPY = ("/clock", "/parameter_events", "/rosout")
_MANY = 5


class SettingsParameters:
    """Declares groups of settings on a node and follows their changes.

    `apply` is called with (group, new settings) after a change was checked.
    """

    def __init__(self, node: Node, apply: Callable[[str, Settings], None]) -> None:
        self._node = node
        self._apply = apply
        self._groups: dict[str, Settings] = {}
        self._floats: set[str] = set()
        self._unknown: list[str] | None = None
        self._logged: set[str] = set()
        _living.add(self)
        node.add_on_set_parameters_callback(self._on_set)
        if hasattr(node, "add_pre_set_parameters_callback"):  # Humble refuses 5 for 5.0
            node.add_pre_set_parameters_callback(self._widened)

    def declare(self, group: str, kind: type[_S], *, read_only: bool = False) -> _S:
        """Declare the fields of `kind` as `group.field` (or `field` where group is empty).

        With `read_only` all of them are, whatever the fields say. Whole numbers do for floats.

        Raises:
            InvalidSettingError: a value given at start does not fit; names the parameter.
        """
        values: dict[str, Any] = {}
        for field in dataclasses.fields(kind):
            name = _name(group, field.name)
            if type(field.default) is float:
                self._floats.add(name)
                overrides = self._overrides()
                if name in overrides:
                    overrides[name] = _as_float(overrides[name])
            try:
                descriptor = _descriptor(field)
                descriptor.read_only |= read_only
                parameter = self._node.declare_parameter(name, field.default, descriptor)
            except ParameterException as error:
                raise InvalidSettingError(f"parameter {name}: {error}") from error
            values[field.name] = parameter.value
        with in_group(group, kind):
            settings = kind(**values)
        self._groups[group] = settings
        return settings

    def without_effect(self) -> list[str]:
        """Return a sentence for each parameter given at start that has no effect; log it once.

        These are names that no node has, and qos_overrides of the node's topics. A file for all
        nodes (`/**`) may name the parameters and the topics of others too: theirs are no fault,
        and those of nodes in the same process, which are given the same, not worth a word.
        """
        if self._unknown is None:
            given = set(self._overrides()) - set(_OF_EVERY_NODE)
            own = {n for n in given if self._node.has_parameter(n) or n.startswith(_QOS_OVERRIDES)}
            beside = [each for each in _living if each._node.context is self._node.context]
            of_process = {name for each in beside for name in each.names()}
            self._unknown, others = _unknown_names(given - own - of_process)
            if others:
                self._node.get_logger().info(others)
        found = self._unknown + self._ineffective_qos()
        for text in found:
            if text not in self._logged:
                self._logged.add(text)
                self._node.get_logger().warning(text)
        return found

    def _ineffective_qos(self) -> list[str]:
        given = sorted(n for n in self._overrides() if n.startswith(_QOS_OVERRIDES))
        if not given:
            return []
        topics = {
            f"{_QOS_OVERRIDES}{each.topic_name}.{kind}"
            for kind, entities in (
                ("publisher", self._node.publishers),
                ("subscription", self._node.subscriptions),
            )
            for each in entities
            if each.topic_name not in _QOS_OF_RCLPY
        }
        return [
            f"parameter {name} has no effect: use input_reliability, input_durability and "
            "input_depth, or output_reliability and output_depth"
            for name in given
            if name.rpartition(".")[0] in topics
        ]

    def names(self) -> list[str]:
        """Return the names of all that were declared here."""
        return [
            _name(group, field.name)
            for group, settings in self._groups.items()
            for field in dataclasses.fields(settings)
        ]

    def _overrides(self) -> dict[str, Parameter]:
        overrides: dict[str, Parameter] = getattr(self._node, "_parameter_overrides", {})
        return overrides

    def _widened(self, parameters: list[Parameter]) -> list[Parameter]:
        undeclared = [p.name for p in parameters if not self._node.has_parameter(p.name)]
        if undeclared:  # rclpy's own refusal does not name them
            raise ParameterNotDeclaredException([self._undeclared(name) for name in undeclared])
        return [_as_float(p) if p.name in self._floats else p for p in parameters]

    def _undeclared(self, name: str) -> str:
        near = _nearest(name, self.names())
        return f"{name} (did you mean {near}?)" if near else name

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        changed: dict[str, dict[str, Any]] = {}
        for parameter in parameters:
            group, _, field = parameter.name.rpartition(".")
            if group in self._groups and hasattr(self._groups[group], field):
                changed.setdefault(group, {})[field] = parameter.value
        try:
            new = {group: self._changed(group, values) for group, values in changed.items()}
        except InvalidSettingError as error:
            return SetParametersResult(successful=False, reason=str(error))
        for group, settings in new.items():
            self._groups[group] = settings
            self._apply(group, settings)
        return SetParametersResult(successful=True)

    def _changed(self, group: str, values: Mapping[str, Any]) -> Settings:
        settings = self._groups[group]
        with in_group(group, type(settings)):
            return dataclasses.replace(settings, **values)


_living: weakref.WeakSet[SettingsParameters] = weakref.WeakSet()
"""Of all nodes in this process."""


def _as_float(parameter: Parameter) -> Parameter:
    if parameter.type_ != Parameter.Type.INTEGER:
        return parameter
    return Parameter(parameter.name, value=float(parameter.value))


def _unknown_names(names: set[str]) -> tuple[list[str], str]:
    """Return a sentence for each name that no node has, and one for those that other nodes have."""
    if not names:
        return [], ""
    from tiekd_ros.nodes.common.parameter_groups import parameter_owners

    owners = parameter_owners()
    said = []
    for name in sorted(names - owners.keys()):
        near = _nearest(name, sorted(owners))
        hint = f"; did you mean {near}?" if near else ""
        said.append(f"unknown parameter {name} is ignored{hint}")
    others = [f"{name} ({' and '.join(owners[name])})" for name in sorted(names & owners.keys())]
    if not others:
        return said, ""
    more = f" and {len(others) - _MANY} more" if len(others) > _MANY else ""
    return said, f"given, but other nodes' parameters: {', '.join(others[:_MANY])}{more}"


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if not near:  # the right name in the wrong group
        near = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]]
    return near[0] if near else ""


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
    elif info.minimum is not None or info.maximum is not None:
        descriptor.additional_constraints = info.allowed()
    return descriptor
