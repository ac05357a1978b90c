"""Uncompressing a bag's chunks and files within bounds: kilobytes can unfold to gigabytes."""

from __future__ import annotations

import bz2
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import lz4.frame
from rosbags.rosbag1 import reader as ros1
from rosbags.rosbag2 import storage_mcap

from tiekd_ros.bags import BagError

if sys.version_info >= (3, 14):
    from compression import zstd
else:  # rosbags brings it
    from backports import zstd

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

MOST_BYTES = 2**30
"""The largest message or chunk that is unpacked: beyond any camera."""
SPARED_BYTES = 64 * 2**20
"""Disk space that is left free for other programs."""

_PIECE_BYTES = 2**16  # of a file that was cut off, what cannot be read as a whole is lost


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


class _Closable(Protocol):
    def close(self) -> None: ...


class ScratchDir:
    """The folder for a bag's uncompressed files; one file that was compressed whole at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._owner: _Closable | None = None

    def new_folder(self) -> Path:
        """Make a folder inside."""
        return Path(tempfile.mkdtemp(dir=self._path))

    def clear_for(self, owner: _Closable) -> None:
        """Close the owner of the uncompressed file: `owner` writes the next one."""
        if self._owner is not None and self._owner is not owner:
            self._owner.close()
        self._owner = owner


def decompress(data: bytes, most: int = MOST_BYTES) -> bytes:
    """Unpack one message or chunk of at most `most` bytes.

    Raises:
        BagError: it is damaged, cut off, or unpacks to more.
    """
    unpacker = zstd.ZstdDecompressor()
    try:
        unpacked: bytes = unpacker.decompress(data, min(most, MOST_BYTES) + 1)
    except zstd.ZstdError as error:
        raise BagError(f"a message's compression is damaged ({error})") from error
    if not unpacker.eof or len(unpacked) > most:
        raise BagError(f"a compressed message is cut off, or unpacks to more than {most} bytes")
    return unpacked


def decompress_file(packed: Path, target: Path) -> bool:
    """Uncompress a whole file; return False where it was cut off (what is there is written).

    Raises:
        BagError: nothing of it could be unpacked, or the disk has no room for it.
    """
    try:
        with zstd.open(packed, "rb") as source, target.open("wb") as sink:
            while piece := source.read(_PIECE_BYTES):
                require_room(target.parent, len(piece), f"{packed} unpacked")
                sink.write(piece)
    except (zstd.ZstdError, EOFError) as error:
        if target.stat().st_size == 0:
            raise BagError(f"{packed} cannot be unpacked ({error})") from error
        return False
    except OSError as error:
        raise BagError(f"cannot unpack {packed} into {target.parent}: {error.strerror}") from error
    return True


def decompress_chunk(compression: str, data: bytes, size: int) -> bytes:
    """Uncompress a chunk.

    Args:
        compression: '' (none), 'lz4' or 'zstd'.
        data: the chunk.
        size: its uncompressed size in bytes, as it says itself.

    Raises:
        BagError: it is damaged, longer than that or than a gigabyte, or of another compression.
    """
    if size > MOST_BYTES:
        raise BagError(f"a chunk claims {size} bytes: more than any recorder writes")
    if compression == "":
        return data
    if compression == "zstd":
        return decompress(data, size)
    if compression == "lz4":
        return _bounded(lz4.frame.LZ4FrameDecompressor(), data, size)
    raise BagError(f"chunks compressed with {compression!r} are not known")


def bound_rosbags() -> None:
    """Set the same bounds for the chunks that rosbags uncompresses: it has none of its own."""
    for compression in ("lz4", "zstd"):
        storage_mcap.DECOMPRESSORS[compression] = _for_mcap(compression)
    ros1.decompressors["bz2"] = lambda data: _bounded(bz2.BZ2Decompressor(), data, MOST_BYTES)
    ros1.decompressors["lz4"] = lambda data: decompress_chunk("lz4", data, MOST_BYTES)


def _for_mcap(compression: str) -> Callable[[bytes, int], bytes]:
    return lambda data, size: decompress_chunk(compression, data, size)


def _bounded(
    unpacker: lz4.frame.LZ4FrameDecompressor | bz2.BZ2Decompressor, data: bytes, most: int
) -> bytes:
    try:
        unpacked = bytes(unpacker.decompress(data, most + 1))
    except (RuntimeError, OSError) as error:
        raise BagError(f"a chunk's compression is damaged ({error})") from error
    if not unpacker.eof and len(unpacked) <= most:
        raise BagError("a compressed chunk is cut off")
    if len(unpacked) > most:
        raise BagError(f"a compressed chunk unpacks to more than the {most} bytes it may have")
    return unpacked
