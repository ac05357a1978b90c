"""The fixtures that several files use."""

from helpers.fixtures import *  # noqa: F403
