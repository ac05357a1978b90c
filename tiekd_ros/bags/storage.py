"""Files of a bag, opened as what their first bytes say they are, and read as far as they are whole.

A recorder that lost its power leaves no index, no footer, and a last record of which a part is
missing. MCAP is a list of records (one byte of kind, eight of length, the payload), see
https://mcap.dev/spec; most of them lie in chunks, which are such lists themselves.

Why not the StreamReader of the `mcap` package (1.6): of an uncompressed recording of 1200 messages
that was cut at 90, 50 and 20 % it yields 972, 324 and 0 messages, this reader 1082, 602 and 242,
since it drops the chunk that was cut. Damage in one record ends its reading, and a damaged length
inside a chunk makes it read that much (MemoryError at 1 TiB): its record_size_limit is checked
against a record's outer length only.
"""

from __future__ import annotations

import mmap
import shutil
import sqlite3
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from rosbags.rosbag1 import Reader as Ros1Reader
from rosbags.rosbag2.storage_mcap import McapReader
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader

from tiekd_ros.bags import ROS1, BagError, Message, Storage, Topic, full_type, scratch
from tiekd_ros.bags.scratch import ScratchDir, bound_rosbags, decompress_chunk, require_room

MCAP_MAGIC = b"\x89MCAP0\r\n"

_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END = 0x02, 0x03, 0x04, 0x05, 0x06, 0x0F
_HEAD_BYTES = 9  # of a record: kind and length
_MESSAGE_HEAD = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_CHUNK_HEAD = struct.Struct("<QQQI")  # first and last log time, size unpacked, CRC32


class McapSalvage:
    """An MCAP file without its end, or with a broken index."""

    def __init__(self, path: Path) -> None:
        """Look through the whole file once.

        Raises:
            BagError: there is not one whole record in it.
        """
        self.topics: list[Topic] = []
        self.notes: list[str] = []
        self._schemas: dict[int, str] = {}
        self._channels: dict[int, tuple[str, str, str]] = {}  # topic, type, encoding
        self._broken = self._lost = 0
        with path.open("rb") as file:
            self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.span_ns: tuple[int, int] | None = None
        counts: Counter[tuple[str, str, str]] = Counter()
        for channel, log_ns, _ in self._scan():
            counts[channel] += 1
            first, last = self.span_ns or (log_ns, log_ns)
            self.span_ns = min(first, log_ns), max(last, log_ns)
        if not self._channels:
            raise BagError(f"{path} was cut off before its first message: nothing to read in it")
        for channel in dict.fromkeys(self._channels.values()):
            self.topics.append(Topic(*channel, counts[channel]))
        self._note(path.name, counts.total())

    def messages(self, names: Collection[str]) -> Iterator[Message]:
        """Yield the messages of these topics, as they lie in the file."""
        for (topic, _, _), log_ns, data in self._scan():
            if topic in names:
                yield Message(topic, log_ns, bytes(data))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _note(self, name: str, count: int) -> None:
        if self._lost:
            what = "was cut off while it was recorded"
            lost = f"its last {self._lost} bytes are part of a message or chunk and are lost"
        else:
            what, lost = "was not closed by its recorder", "nothing is known to be missing"
        self.notes.append(f"{name} {what}: read the {count} messages that are whole ({lost})")
        if self._broken:
            self.notes.append(f"{name}: {self._broken} damaged chunks were left out")

    def _scan(self) -> Iterator[tuple[tuple[str, str, str], int, bytes]]:
        """Yield channel, log time and data of each whole message."""
        self._broken = self._lost = 0
        position, size = len(MCAP_MAGIC), len(self._file)
        while position < size:
            kind, start, end = self._head(position)
            if kind in (_DATA_END, _FOOTER) and end <= size:
                return
            if end > size:
                self._lost = size - position
            if kind == _CHUNK:
                records, rest = self._chunk(start, min(end, size), whole=end <= size)
                for inner, payload in _records(records):
                    yield from self._record(inner, payload)
                self._lost = rest if end > size else 0
            elif end <= size:
                yield from self._record(kind, self._file[start:end])
            position = end

    def _head(self, position: int) -> tuple[int, int, int]:
        """Return kind, start and end of the record at a position."""
        head = self._file[position : position + _HEAD_BYTES]
        if len(head) < _HEAD_BYTES:
            return 0, position, len(self._file) + 1
        start = position + _HEAD_BYTES
        return head[0], start, start + int.from_bytes(head[1:], "little")

    def _chunk(self, start: int, end: int, *, whole: bool) -> tuple[bytes, int]:
        """Return a chunk's records unpacked, and how many bytes of it are of no use.

        Of one that was cut off there is something to be had only where it is not compressed.
        """
        data = self._file[start:end]
        try:
            _, _, size, crc = _CHUNK_HEAD.unpack_from(data)
            compression, position = _text(data, _CHUNK_HEAD.size)
            records = data[position + 8 :]
            if not whole:
                used = _whole_bytes(records) if compression == "" else 0
                return records[:used], len(records) - used
            (length,) = struct.unpack_from("<Q", data, position)
            unpacked = decompress_chunk(compression, records[:length], size)
            if len(unpacked) != size or (crc and zlib.crc32(unpacked) != crc):
                raise ValueError("its checksum does not fit")
        except Exception:  # a damaged chunk can raise anything
            self._broken += whole
            return b"", len(data)
        return unpacked, 0

    def _record(
        self, kind: int, payload: bytes
    ) -> Iterator[tuple[tuple[str, str, str], int, bytes]]:
        """Keep a schema's or channel's name, or yield a message; a damaged record is skipped."""
        if kind == _MESSAGE and len(payload) >= _MESSAGE_HEAD.size:
            number, _, log_ns, _ = _MESSAGE_HEAD.unpack_from(payload)
            if number in self._channels:
                yield self._channels[number], log_ns, payload[_MESSAGE_HEAD.size :]
            return
        with suppress(struct.error):
            self._keep_name(kind, payload)

    def _keep_name(self, kind: int, payload: bytes) -> None:
        """Keep the name of a schema or a channel."""
        if kind == _SCHEMA:
            (number,) = struct.unpack_from("<H", payload)
            self._schemas[number] = full_type(_text(payload, 2)[0])
        elif kind == _CHANNEL:
            number, schema = struct.unpack_from("<HH", payload)
            topic, position = _text(payload, 4)
            encoding, _ = _text(payload, position)
            self._channels[number] = (topic, self._schemas.get(schema, "no schema"), encoding)


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and payload of each whole record."""
    position = 0
    while position + _HEAD_BYTES <= len(data):
        start = position + _HEAD_BYTES
        end = start + int.from_bytes(data[position + 1 : start], "little")
        if end > len(data):
            return
        yield data[position], data[start:end]
        position = end


def _whole_bytes(data: bytes) -> int:
    return sum(_HEAD_BYTES + len(payload) for _, payload in _records(data))


def _text(data: bytes, position: int) -> tuple[str, int]:
    """Return the text at a position, and where it ends."""
    (length,) = struct.unpack_from("<I", data, position)
    start = position + 4
    return data[start : start + length].decode(errors="replace"), start + length


SQLITE_MAGIC = b"SQLite format 3\x00"

_TOPICS = "SELECT id, name, type, serialization_format FROM topics"


class SqliteSalvage:
    """A damaged file, read in the order in which its rows were written."""

    def __init__(self, path: Path) -> None:
        """Look through the whole file once.

        Raises:
            BagError: not even its list of topics can be read.
        """
        self.notes: list[str] = []
        self._fault = ""
        self._path = path
        self._names: dict[int, str] = {}
        try:
            with closing(self._connect()) as connection:
                rows = [row for row in connection.execute(_TOPICS) if _is_topic(row)]
        except sqlite3.Error as error:
            raise BagError(f"{path} is too damaged to be read ({error})") from error
        self._names = {number: name for number, name, _, _ in rows}
        found = [(number, log_ns) for number, log_ns, _ in self._rows("topic_id, timestamp, id")]
        counts = Counter(number for number, _ in found)
        times = [log_ns for _, log_ns in found]
        self.span_ns = (min(times), max(times)) if times else None
        self.topics = [
            Topic(name, full_type(kind), encoding, counts[number])
            for number, name, kind, encoding in rows
        ]
        what = f" ({self._fault})" if self._fault else ""
        self.notes.append(
            f"{path.name} is damaged or was cut off{what}: read the {counts.total()} messages "
            "before that"
        )

    def messages(self, names: Collection[str]) -> Iterator[Message]:
        """Yield the messages of these topics, as they were written."""
        for number, log_ns, data in self._rows("topic_id, timestamp, data"):
            if self._names.get(number) in names and isinstance(data, bytes):
                yield Message(self._names[number], log_ns, data)

    def close(self) -> None:
        """Nothing stays open."""

    def _connect(self) -> sqlite3.Connection:
        uri = f"{self._path.absolute().as_uri()}?mode=ro&immutable=1"
        connection = sqlite3.connect(uri, uri=True)
        # Without this SQLite opens no file that is shorter than its first page says.
        connection.execute("PRAGMA writable_schema = ON")
        return connection

    def _rows(self, columns: str) -> Iterator[tuple[int, int, bytes]]:
        with closing(self._connect()) as connection:
            try:
                for row in connection.execute(f"SELECT {columns} FROM messages ORDER BY id"):
                    if isinstance(row[0], int) and isinstance(row[1], int) and row[2] is not None:
                        yield row
            except sqlite3.Error as error:
                self._fault = str(error)


def _is_topic(row: tuple[object, ...]) -> bool:
    """Return whether a row of the topics is undamaged."""
    return isinstance(row[0], int) and all(isinstance(text, str) for text in row[1:])


def copy_with_log(path: Path, scratch: Path) -> tuple[Path | None, str]:
    """Copy an SQLite file and its write-ahead log, where a killed recorder left its last messages.

    The recording itself is not changed.

    Args:
        path: the file.
        scratch: folder of the copy.

    Returns:
        The copy that holds both, None where there is no log or it cannot be read; and a note.
    """
    log = path.with_name(path.name + "-wal")
    if not log.exists() or log.stat().st_size == 0:
        return None, ""
    copy = scratch / path.name
    try:
        size = path.stat().st_size + 2 * log.stat().st_size  # the log's pages go into the copy
        require_room(scratch, size, f"a copy of {path.name} with its write-ahead log")
        shutil.copyfile(path, copy)
        shutil.copyfile(log, copy.with_name(log.name))
        with closing(sqlite3.connect(copy)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except (BagError, OSError, sqlite3.Error) as error:
        for part in (copy, copy.with_name(log.name)):
            part.unlink(missing_ok=True)
        return None, (
            f"{path.name} was not closed by its recorder, and its write-ahead log could not be "
            f"read ({error}): the last messages may be missing"
        )
    return copy, (
        f"{path.name} was not closed by its recorder: its write-ahead log was read as well"
    )


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
        found: Counter[tuple[str, str, str]] = Counter()
        for each in self._connections:
            key = (each.topic, full_type(each.msgtype), encoding or each.ext.serialization_format)
            found[key] += each.msgcount
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
        try:
            for connection, log_ns, data in self._reader.messages(wanted):
                count += 1
                yield Message(connection.topic, log_ns, bytes(data))
        except Exception as error:  # a damaged file can raise anything
            self.notes.append(
                f"{self._name} is damaged after {count} messages ({error}): the rest of it was "
                "left out"
            )

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
