"""A bag as a whole: its files, topics and messages, and oddities of them."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import yaml
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from tiekd_ros.bags import CDR, ROS1, BagError, Message, Storage, Topic, scratch
from tiekd_ros.bags.scratch import ScratchDir
from tiekd_ros.bags.storage import open_storage
from tiekd_ros.core import Closing

METADATA = "metadata.yaml"
SUFFIXES = (".mcap", ".db3", ".mcap.zstd", ".db3.zstd", ".bag")

_REINDEX = "`ros2 bag reindex` writes a new one; here it is not needed"


@dataclass
class BagFiles:
    """The files of a bag, in the order of their recording."""

    files: list[Path]
    notes: list[str] = field(default_factory=list)
    """Oddities, for people."""
    promised: dict[str, int] = field(default_factory=dict)
    """Number of messages by topic, where a metadata.yaml says it."""


def is_bag(path: Path) -> bool:
    """Return whether a path looks like a bag: one of its files, or a folder that holds some."""
    if path.is_dir():
        return bool(_storage_files(path)) or _read_metadata(path / METADATA, []) is not None
    return path.is_file() and (path.name == METADATA or path.name.endswith(SUFFIXES))


def find_files(path: Path) -> BagFiles:
    """Find a bag's files.

    Raises:
        BagError: nothing is there, or a folder without any.
    """
    if not path.exists():
        raise BagError(f"{path} does not exist; give the folder of a rosbag2, or one of its files")
    if path.name == METADATA:
        path = path.parent
    if path.is_file():
        return BagFiles([path])
    there = _storage_files(path)
    layout = _by_metadata(path, there)
    if not layout.files:
        listed = ", ".join(layout.promised) or "nothing"
        raise BagError(
            f"{path} holds no bag: there is no file of {', '.join(SUFFIXES)} in it"
            + (f" (its {METADATA} promises messages of {listed})" if layout.promised else "")
        )
    return layout


def _storage_files(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir() if file.name.endswith(SUFFIXES) and file.is_file()]
    return sorted(files, key=lambda file: [_natural(p) for p in re.split(r"(\d+)", file.name)])


def _natural(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdigit() else (-1, part)


def _by_metadata(folder: Path, there: list[Path]) -> BagFiles:
    """Return the files in the order that metadata.yaml gives; all that are there without one."""
    layout = BagFiles(there)
    metadata = _read_metadata(folder / METADATA, layout.notes)
    if metadata is None:
        return layout
    try:
        listed = [PurePath(str(name)).name for name in metadata["relative_file_paths"]]
        for entry in metadata.get("topics_with_message_count") or []:
            layout.promised[str(entry["topic_metadata"]["name"])] = int(entry["message_count"])
    except (KeyError, TypeError, ValueError) as error:
        layout.notes.append(
            f"{METADATA} cannot be understood ({error!r}): read all files; {_REINDEX}"
        )
        return layout
    names = {file.name: file for file in there}
    missing = [name for name in listed if name not in names]
    extra = [name for name in names if name not in listed]
    if missing:
        layout.notes.append(
            f"{METADATA} lists {len(listed)} files, of which {len(missing)} are not there "
            f"({_short(missing)}): read the others"
        )
    if extra:
        layout.notes.append(f"{METADATA} does not list {_short(extra)}: read as well")
    layout.files = [names[name] for name in (*dict.fromkeys(listed), *extra) if name in names]
    return layout


def _read_metadata(path: Path, notes: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        notes.append(
            f"there is no {METADATA}: its recorder was stopped before it wrote one; {_REINDEX}"
        )
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        information = content["rosbag2_bagfile_information"]
        if not isinstance(information, dict):
            raise TypeError("rosbag2_bagfile_information is empty")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        line = str(error).splitlines()[0]
        notes.append(f"{METADATA} cannot be read ({line}): read all files; {_REINDEX}")
        return None
    return information


def _short(names: list[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} … {names[-1]}"


MIXED = "messages of several types"


class Bag(Closing):
    """An open bag: a rosbag2 folder, one of its files, or a ROS 1 bag.

    What is damaged, cut off, missing or not said by its metadata is read as far as it is whole,
    and `notes` says so.

    Raises:
        BagError: nothing in it can be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        layout = find_files(self.path)
        self._notes = layout.notes
        self._promised = layout.promised
        self._storages: list[Storage] = []
        self._stack = ExitStack()
        self._decompressed = 0
        try:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory("-tiekd-bag"))
            self._open(layout.files, ScratchDir(Path(folder)))
        except BaseException:
            self._stack.close()
            raise
        self.topics: dict[str, Topic] = self._merged_topics()
        self._note_missing()

    def close(self) -> None:
        """Close its files."""
        self._stack.close()

    @property
    def notes(self) -> list[str]:
        """Oddities, for people; more may come while the bag is read."""
        odd = [*self._notes, *(note for storage in self._storages for note in storage.notes)]
        if self._decompressed:
            odd.append("its messages are zstd-compressed one by one: unpacked them")
        return odd

    @property
    def seconds(self) -> float:
        """From its first message to its last."""
        spans = [storage.span_ns for storage in self._storages if storage.span_ns is not None]
        if not spans:
            return 0.0
        return (max(last for _, last in spans) - min(first for first, _ in spans)) / 1e9

    def messages(self, names: Collection[str]) -> Iterator[Message]:
        """Yield the messages of these topics in the order of their recording, unpacked."""
        for file in range(len(self._storages)):
            yield from self._of_file(file, names)

    def first(self, name: str) -> Message | None:
        """Return the first message of a topic."""
        return next(self.messages([name]), None)

    def firsts(self, name: str) -> dict[int, Message]:
        """Return the first message of a topic in each file that has one, by the file's number."""
        found = ((n, next(self._of_file(n, [name]), None)) for n in range(len(self._storages)))
        return {number: message for number, message in found if message is not None}

    def recorded_at(self, name: str, file: int, number: int) -> int | None:
        """Return when message `number` (from 0) of a topic in a file was recorded, in ns."""
        messages = self._of_file(file, [name])
        found = next(itertools.islice(messages, number, None), None)
        return None if found is None else found.log_ns

    def _of_file(self, file: int, names: Collection[str]) -> Iterator[Message]:
        for message in self._storages[file].messages(names):
            # No message itself begins like that: CDR does with 0.
            if message.data[:4] != scratch.ZSTD_MAGIC:
                yield message._replace(file=file)
                continue
            self._decompressed += 1
            try:
                unpacked = scratch.decompress(message.data)
            except BagError:
                unpacked = b""  # `decode` refuses it
            yield message._replace(data=unpacked, file=file)

    def decode(self, message: Message) -> Any:
        """Return a message's fields as rosbags gives them.

        Raises:
            BagError: the message is damaged, or of a type or encoding that is not known here.
        """
        topic = self.topics[message.topic]
        try:
            if topic.encoding == ROS1:
                return typestore(ROS1).deserialize_ros1(message.data, topic.type)
            return typestore(CDR).deserialize_cdr(message.data, topic.type)
        except (SerdeError, KeyError, AssertionError) as error:
            raise BagError(f"a message of {topic.name} is damaged ({error})") from error

    def _open(self, files: list[Path], scratch_dir: ScratchDir) -> None:
        """Open all files; one of several may be of no use."""
        for file in files:
            try:
                storage = open_storage(file, scratch_dir)
            except BagError as error:
                if len(files) == 1:
                    raise
                self._notes.append(f"{error}: left it out")
                continue
            self._stack.callback(storage.close)
            self._storages.append(storage)
        if not self._storages:
            raise BagError(f"no file of {self.path} can be read: {'; '.join(self._notes)}")

    def _merged_topics(self) -> dict[str, Topic]:
        merged: dict[str, Topic] = {}
        for topic in (topic for storage in self._storages for topic in storage.topics):
            known = merged.get(topic.name, topic)
            same = (known.type, known.encoding) == (topic.type, topic.encoding)
            count = topic.count + (known.count if topic.name in merged else 0)
            kind = topic.type if same else MIXED
            merged[topic.name] = Topic(topic.name, kind, topic.encoding, count)
        return dict(sorted(merged.items()))

    def _note_missing(self) -> None:
        """Note where the metadata promises what the files do not hold."""
        for name, promised in self._promised.items():
            found = self.topics[name].count if name in self.topics else 0
            if found != promised:
                self._notes.append(
                    f"metadata.yaml promises {promised} messages of {name}, its files hold {found}"
                )


@cache
def typestore(encoding: str) -> Typestore:
    """Return the message types of ROS 1, or of ROS 2 (what is used here is alike in all)."""
    return get_typestore(Stores.ROS1_NOETIC if encoding == ROS1 else Stores.ROS2_HUMBLE)
