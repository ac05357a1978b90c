"""Room on the disk for what has to be unpacked or completed before it can be read."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO, Protocol

from tiekd_ros.frames.bags.records import BagError

SPARED_BYTES = 64 * 2**20
"""What is left free for others."""

_PIECE_BYTES = 2**16  # of a file that was cut off, what cannot be read as a whole is lost


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def require_room(folder: Path, size: int, what: str) -> None:
    """Check that `size` bytes fit into a folder's disk.

    Raises:
        BagError: they do not; says how to use another disk.
    """
    free = shutil.disk_usage(folder).free
    if size + SPARED_BYTES > free:
        raise BagError(
            f"no room for {what} in {folder} ({size / 1e6:.0f} MB more are needed, {free / 1e6:.0f}"
            " MB are free): set TMPDIR to a folder on a larger disk"
        )


def copy(source: _Readable, sink: BinaryIO, folder: Path, what: str) -> None:
    """Copy a stream to its end into a file in `folder`, as long as there is room.

    Raises:
        BagError: there is none left.
    """
    while piece := source.read(_PIECE_BYTES):
        require_room(folder, len(piece), what)
        sink.write(piece)


class _Closable(Protocol):
    def close(self) -> None: ...


class Desk:
    """Where a bag's files lie while they are read; one that is packed as a whole at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lying: _Closable | None = None

    def folder(self) -> Path:
        """Return a new folder."""
        return Path(tempfile.mkdtemp(dir=self._path))

    def clear_for(self, owner: _Closable) -> None:
        """Close what lies here: `owner` is unpacked next."""
        if self._lying is not None and self._lying is not owner:
            self._lying.close()
        self._lying = owner
