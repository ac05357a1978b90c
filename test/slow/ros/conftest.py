"""The fixtures of the tests with real rclpy."""

from ros_helpers.fixtures import *  # noqa: F403
