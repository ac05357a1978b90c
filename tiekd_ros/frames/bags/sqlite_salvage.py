"""Reading a bag's SQLite file that is damaged or was cut off: row by row, as far as it goes."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path

from tiekd_ros.frames.bags.records import BagError, Message, Topic, full_type
from tiekd_ros.frames.bags.scratch import require_room

MAGIC = b"SQLite format 3\x00"

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
    """Tell a row of the topics from what damage made of one."""
    return isinstance(row[0], int) and all(isinstance(text, str) for text in row[1:])


def with_its_log(path: Path, scratch: Path) -> tuple[Path | None, str]:
    """Return a copy of a file that holds its write-ahead log too, and what there is to say of it.

    A recorder that was killed leaves its last messages there. The recording itself is not changed.
    None where there is no such log, or where it cannot be had: what is in the file itself can.
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
