"""Unpacking a bag's chunks within bounds: a few kilobytes can unfold to gigabytes."""

from __future__ import annotations

import bz2
from collections.abc import Callable

import lz4.frame
from rosbags.rosbag1 import reader as ros1
from rosbags.rosbag2 import storage_mcap

from tiekd_ros.frames.bags.records import BagError
from tiekd_ros.frames.bags.zstd import MOST_BYTES, decompress


def unpack(packing: str, data: bytes, size: int) -> bytes:
    """Unpack a chunk that is `size` bytes long by its own account.

    Raises:
        BagError: it is damaged, longer than that or than a gigabyte, or of another packing than
            '', 'lz4' and 'zstd'.
    """
    if size > MOST_BYTES:
        raise BagError(f"a chunk claims {size} bytes: more than any recorder writes")
    if packing == "":
        return data
    if packing == "zstd":
        return decompress(data, size)
    if packing == "lz4":
        return _bounded(lz4.frame.LZ4FrameDecompressor(), data, size)
    raise BagError(f"chunks packed with {packing!r} are not known")


def bound_rosbags() -> None:
    """Have rosbags unpack chunks within the same bounds, which it does not have of its own."""
    for packing in ("lz4", "zstd"):
        storage_mcap.DECOMPRESSORS[packing] = _for_mcap(packing)
    ros1.decompressors["bz2"] = lambda data: _bounded(bz2.BZ2Decompressor(), data, MOST_BYTES)
    ros1.decompressors["lz4"] = lambda data: unpack("lz4", data, MOST_BYTES)


def _for_mcap(packing: str) -> Callable[[bytes, int], bytes]:
    return lambda data, size: unpack(packing, data, size)


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
