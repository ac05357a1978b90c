"""Files of a bag, opened as what their first bytes say they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from rosbags.rosbag1 import Reader as Ros1Reader
from rosbags.rosbag2.storage_mcap import McapReader
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader

from tiekd_ros.bags import ROS1, BagError, Message, Storage, Topic, full_type, scratch
from tiekd_ros.bags.salvage import (
    MCAP_MAGIC,
    SQLITE_MAGIC,
    McapSalvage,
    SqliteSalvage,
    copy_with_log,
)
from tiekd_ros.bags.scratch import ScratchDir, bound_rosbags

_ROS1_MAGIC = b"#ROSBAG V"

bound_rosbags()


class SoundStorage:
    """A file that rosbags can open."""

    def __init__(self, name: str, reader: Any, encoding: str = "") -> None:
        """Open it; `encoding` is that of all messages where connections do not say it."""
        self.notes: list[str] = []
        self._name = name
        self._reader = reader
        reader.open()
        self._connections = list(reader.connections)
        self.span_ns = self._span(reader)
        found: dict[tuple[str, str, str], int] = {}
        for each in self._connections:
            key = (each.topic, full_type(each.msgtype), encoding or each.ext.serialization_format)
            found[key] = found.get(key, 0) + each.msgcount
            if key[1] != each.msgtype:
                self.notes.append(f"{each.topic} has type {each.msgtype}: read as {key[1]}")
        self.topics = [Topic(*key, count) for key, count in found.items()]

    @staticmethod
    def _span(reader: Any) -> tuple[int, int] | None:
        # ROS 1 readers have no metadata, but the same two properties; both count one too many.
        times = getattr(reader, "metadata", reader)
        if not reader.connections or times.end_time <= times.start_time:
            return None
        return int(times.start_time), int(times.end_time) - 1

    def messages(self, names: Collection[str]) -> Iterator[Message]:
        """Yield the messages of these topics in the order of their recording."""
        wanted = [each for each in self._connections if each.topic in names]
        if not wanted:
            return
        count = 0
        reading = self._reader.messages(wanted)
        while True:
            try:
                connection, log_ns, data = next(reading)
            except StopIteration:
                return
            except Exception as error:  # a damaged file can raise anything
                self.notes.append(
                    f"{self._name} is damaged after {count} messages ({error}): the rest of it "
                    "was left out"
                )
                return
            count += 1
            yield Message(connection.topic, log_ns, bytes(data))

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


class CompressedStorage:
    """A file that is compressed as a whole: unpacked in the scratch folder until the next one."""

    def __init__(self, path: Path, scratch_dir: ScratchDir) -> None:
        """Uncompress and open the file.

        Raises:
            BagError: there is no room for it, or nothing in it can be read.
        """
        self.notes: list[str] = []
        self._path = path
        self._scratch_dir = scratch_dir
        self._uncompressed: Path | None = None
        self._inner = self._uncompress()
        self.topics = self._inner.topics
        self.span_ns = self._inner.span_ns

    def messages(self, names: Collection[str]) -> Iterator[Message]:
        """Yield the messages of these topics; another packed file must not be read meanwhile."""
        if self._uncompressed is None:
            self._inner = self._uncompress()
        yield from self._inner.messages(names)

    def close(self) -> None:
        """Close it, and take it from the disk."""
        if self._uncompressed is not None:
            self._inner.close()
            self._uncompressed.unlink(missing_ok=True)
            self._uncompressed = None

    def _uncompress(self) -> Storage:
        self._scratch_dir.clear_for(self)
        target = self._scratch_dir.new_folder() / self._path.name.removesuffix(".zstd")
        try:
            whole = scratch.decompress_file(self._path, target)
            inner = open_storage(target, self._scratch_dir)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        self._uncompressed = target
        cut = "" if whole else f"{self._path.name} was cut off: unpacked what there is of it"
        for note in filter(None, (*inner.notes, cut)):
            if note not in self.notes:
                self.notes.append(note)
        inner.notes = self.notes
        return inner


def open_storage(path: Path, scratch_dir: ScratchDir) -> Storage:
    """Open a file of a bag; one that is compressed as a whole is written to `scratch_dir` first.

    Raises:
        BagError: it is no bag, or nothing in it can be read.
    """
    try:
        return _open(path, scratch_dir)
    except BagError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise BagError(f"{path} is too damaged to be read ({error})") from error


def _open(path: Path, scratch_dir: ScratchDir) -> Storage:
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise BagError(f"cannot read {path}: {error.strerror}") from error
    if not start:
        raise BagError(f"{path} is empty: its recorder was stopped before it wrote anything")
    if start.startswith(scratch.ZSTD_MAGIC):
        return CompressedStorage(path, scratch_dir)
    if start.startswith(MCAP_MAGIC):
        return _open_mcap(path)
    if start.startswith(SQLITE_MAGIC):
        return _open_sqlite(path, scratch_dir)
    if start.startswith(_ROS1_MAGIC):
        return _open_ros1(path)
    raise BagError(
        f"{path} is no bag: it begins like neither MCAP nor SQLite (rosbag2) nor a ROS 1 bag"
    )


def _open_mcap(path: Path) -> Storage:
    reader = McapReader(path)
    try:
        storage = SoundStorage(path.name, reader)
    except Exception:  # a missing end can raise anything
        return McapSalvage(path)
    if reader.chunks or not any(topic.count for topic in storage.topics):
        return storage
    storage.close()
    return McapSalvage(path)  # no index: rosbags refuses messages that are not in order


def _open_sqlite(path: Path, scratch_dir: ScratchDir) -> Storage:
    completed, note = copy_with_log(path, scratch_dir.new_folder())
    try:
        storage: Storage = SoundStorage(path.name, Sqlite3Reader(completed or path))
    except Exception:  # a damaged file can raise anything
        storage = SqliteSalvage(completed or path)
    if note:
        storage.notes.append(note)
    return storage


def _open_ros1(path: Path) -> Storage:
    try:
        return SoundStorage(path.name, Ros1Reader(path), ROS1)
    except Exception as error:  # rosbags' own errors have no common base for ROS 1 and 2
        raise BagError(
            f"{path} is a ROS 1 bag that cannot be opened ({error}); if it was not closed, "
            "`rosbag reindex` mends it"
        ) from error
