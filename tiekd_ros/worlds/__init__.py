"""The synthetic world: a procedural scene with exact depth, for the demo and for tests."""

from tiekd_ros.worlds.indoor import IndoorWorld, WorldSettings, WorldView

__all__ = ["IndoorWorld", "WorldSettings", "WorldView"]
