"""A one-slot mailbox: the newest item wins, the older one is counted and dropped."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Hands items from one thread to another without ever queueing stale ones."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._item: T | None = None
        self._closed = False
        self.replaced = 0
        """Number of items that a newer one replaced before they were taken."""

    def put(self, item: T) -> None:
        """Leave an item; never blocks."""
        with self._condition:
            if self._item is not None:
                self.replaced += 1
            self._item = item
            self._condition.notify()

    def take(self, timeout_s: float | None = None) -> T | None:
        """Wait for an item and return it; None after the timeout or when closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._item is not None or self._closed, timeout_s)
            item, self._item = self._item, None
            return item

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Wake all waiting threads; an item that is left is still handed out once."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
