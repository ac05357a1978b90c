"""Zstandard, which bags are compressed with: whole files, or messages one by one."""

from __future__ import annotations

import sys
from pathlib import Path

from tiekd_ros.frames.bags.records import BagError
from tiekd_ros.frames.bags.scratch import copy

if sys.version_info >= (3, 14):
    from compression import zstd
else:  # rosbags brings it
    from backports import zstd

MAGIC = b"\x28\xb5\x2f\xfd"

MOST_BYTES = 2**30
"""The largest message or chunk that is unpacked: beyond any camera."""


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


def unpack_file(packed: Path, target: Path) -> bool:
    """Unpack a whole file; return False where it was cut off and what is there was unpacked.

    Raises:
        BagError: nothing of it could be unpacked, or the disk has no room for it.
    """
    try:
        with zstd.open(packed, "rb") as source, target.open("wb") as sink:
            copy(source, sink, target.parent, f"{packed} unpacked")
    except (zstd.ZstdError, EOFError) as error:
        if target.stat().st_size == 0:
            raise BagError(f"{packed} cannot be unpacked ({error})") from error
        return False
    except OSError as error:
        raise BagError(f"cannot unpack {packed} into {target.parent}: {error.strerror}") from error
    return True
