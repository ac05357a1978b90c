"""The base of all rooms: errors, settings, cameras, images, files. Imports no other room."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

_C = TypeVar("_C", bound="Closing")


class Closing(ABC):
    """Base of objects that a `with` block closes."""

    @abstractmethod
    def close(self) -> None:
        """Release what it holds."""

    def __enter__(self: _C) -> _C:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
