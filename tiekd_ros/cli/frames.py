"""`tiekd frames`: what the frame log holds, bags into it, and back out of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tiekd_ros.bags import require_rosbags
from tiekd_ros.cli.options import (
    AsJson,
    State,
    check_choice,
    console,
    plain,
    progress,
    with_settings,
)
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import BadDepthError, InvalidSettingError, TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.datasets import DatasetError, ReadOptions, RgbdFolder
from tiekd_ros.datasets.calibration import read_camera_model
from tiekd_ros.framelog import FrameStore, ImportSettings, Label, Observation, StoreStats, policy
from tiekd_ros.framelog.imports import (
    NOT_ASKED_FOR,
    UNREADABLE,
    Calibration,
    ImportOptions,
    ImportReport,
    Recording,
)
from tiekd_ros.framelog.records import ImportCursor
from tiekd_ros.teacher.errors import TeacherAnswerError

if TYPE_CHECKING:
    from tiekd_ros.bags.exporting import ExportReport

_RECORDED = ("recorded", "1")
"""Name and version of the teacher of frames whose measured depth is their label."""
_BAD_DEPTH = "bad_depth"

_RATE_HZ = 30.0
_FRAME_ID = "camera"

_REASONS = {
    policy.TOO_SOON: "followed the last kept one too closely (--min-interval)",
    policy.BLURRED: "blurred (--min-sharpness)",
    policy.UNDEREXPOSED: "too dark (--min-brightness, --max-clipped-share)",
    policy.OVEREXPOSED: "too bright (--max-brightness, --max-clipped-share)",
    policy.NOT_NOVEL: "look like a stored one (--min-novelty)",
    policy.SPLIT_GUARD: "at a border between training and held-out time (--guard-share)",
    NOT_ASKED_FOR: "skipped (--every)",
    UNREADABLE: "cannot be read",
    _BAD_DEPTH: "have a depth map that would not be believed of a teacher",
}

frames = typer.Typer(
    help="The frame log of a state folder, and bags into it and out of it.", no_args_is_help=True
)

Bags = Annotated[
    list[Path],
    typer.Argument(
        help="rosbag2 folders (SQLite or MCAP), single .mcap or .db3 files, ROS 1 bags, "
        "folders of images with measured depth (images/, depth/, K.txt).",
        metavar="BAG...",
        show_default=False,
    ),
]
ImageTopic = Annotated[
    str,
    typer.Option(
        help="The camera's images, raw or compressed.",
        metavar="TOPIC",
        show_default="the only one",
    ),
]
CameraInfo = Annotated[
    str,
    typer.Option(
        help="The camera's calibration: a topic of the bag, or a file (K.txt, camera.yaml).",
        metavar="TOPIC|FILE",
        show_default="camera_info beside the images",
    ),
]
Rectify = Annotated[
    bool,
    typer.Option(
        "--rectify",
        help="Take the lens's distortion out, as the nodes do with rectify: true.",
    ),
]
Every = Annotated[int, typer.Option(help="Only one image in so many.", min=1)]
Again = Annotated[
    bool,
    typer.Option("--again", help="Look at images anew that an earlier import has looked at."),
]
Output = Annotated[
    Path, typer.Argument(help="Folder of the bag; must not exist yet.", metavar="OUT")
]
Format = Annotated[str, typer.Option("--format", help="mcap or sqlite3.", metavar="FORMAT")]
Compressed = Annotated[
    bool,
    typer.Option("--compressed", help="Write the stored JPEGs (CompressedImage), not raw images."),
]
Labelled = Annotated[
    bool, typer.Option("--labelled", help="Only frames that a teacher has labelled.")
]
OnlySplit = Annotated[
    str,
    typer.Option("--split", help="Only this split: train or held_out.", show_default="both"),
]
Namespace = Annotated[str, typer.Option(help="Where the topics lie.")]


@frames.command("stats")
def frames_stats(state: State = "", as_json: AsJson = False) -> None:
    """Show what the frame log holds."""
    with FrameStore(_log_of(state), read_only=True) as store:
        stats = store.stats()
    if as_json:
        typer.echo(json.dumps(stats.as_dict(), indent=2))
        return
    table = Table("state", "train", "held out")
    for name, splits in stats.frames.items():
        table.add_row(name, str(splits.get("train", 0)), str(splits.get("held_out", 0)))
    console.print(table)
    console.print(
        f"{stats.total} frames, {stats.bytes / 1e6:.1f} MB of {stats.max_bytes / 1e6:.0f} MB; "
        f"{stats.new_labels} labels new since the last round; teachers: "
        f"{', '.join(stats.teachers) or 'none'}"
    )
    for reason, count in stats.rejected.items():
        console.print(f"rejected, {reason}: {count}")


@frames.command("import")
@with_settings("settings", ImportSettings, "What is kept")
def frames_import(
    bags: Bags,
    settings: ImportSettings,
    state: State = "",
    image_topic: ImageTopic = "",
    camera_info: CameraInfo = "",
    rectify: Rectify = False,
    every: Every = 1,
    again: Again = False,
    as_json: AsJson = False,
) -> None:
    """Log the images of recordings, as the companion logs a camera's: to be labelled and learnt.

    What looks like a stored frame, is blurred, or follows the last one too closely is left out,
    and counted. Stop it at any moment and run it again: it goes on where it was, and nothing is
    logged twice. A bag that was cut off, has lost files or its metadata is read as far as it is
    whole. Where one of the bags cannot be used, nothing is imported.

    Images of a lens with distortion are logged as they are, with a warning, unless --rectify is
    given. Of a folder of images with depth the depth becomes the frames' label, by the teacher
    "recorded". Then have a teacher label the frames (`tiekd label --data STATE`), and learn from
    them (`tiekd distill`). docs/bags.md has more.
    """
    topic, calibration = _calibration(camera_info)
    options = ImportOptions(
        image_topic=image_topic,
        camera_info_topic=topic,
        calibration=calibration,
        every=every,
        again=again,
        rectify=rectify,
    )
    with contextlib.ExitStack() as stack:
        imports: list[Recording[Any]] = []
        for bag in bags:
            imports.append(_open_recording(bag.expanduser(), options))
            stack.callback(imports[-1].close)
        log = StateFolder.resolve(state).create().frames
        _run_imports(imports, log, settings, as_json)


def _calibration(camera_info: str) -> tuple[str, Calibration | None]:
    """Return the topic, or what reads the file, that --camera-info names."""
    file = Path(camera_info).expanduser()
    if camera_info and file.is_file():
        return "", lambda size: read_camera_model(file, size)
    if file.suffix in (".txt", ".yaml", ".yml"):
        raise InvalidSettingError(f"--camera-info: there is no file {file}")
    return camera_info, None


@frames.command("export")
def frames_export(
    output: Output,
    state: State = "",
    form: Format = "mcap",
    compressed: Compressed = False,
    labelled: Labelled = False,
    split: OnlySplit = "",
    namespace: Namespace = "/camera",
    as_json: AsJson = False,
) -> None:
    """Write the logged frames as a rosbag2: images, calibration, and the teacher's depth.

    `image_raw` (or `image_raw/compressed`), `camera_info`, and of labelled frames
    `teacher/depth` (32FC1, metres, NaN = unknown) with `teacher/camera_info`, with the frames'
    stamps. `ros2 bag play OUT`, RViz and Foxglove open it. Rejected frames are left out.
    """
    require_rosbags()
    from tiekd_ros.bags.exporting import FORMATS, ExportOptions, export_bag
    from tiekd_ros.framelog.rows import StoredFrames

    check_choice("--format", form, FORMATS)
    check_choice("--split", split, ("", "train", "held_out"))
    stored = StoredFrames(_log_of(state), labelled=labelled, split=split or None)  # type: ignore[arg-type]
    with (
        contextlib.closing(stored),
        progress("exporting", None if as_json else console) as track,
    ):
        options = ExportOptions(form, compressed, namespace)
        report = export_bag(stored, output, options, track(len(stored)))
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    _show_export(report)


def _show_export(report: ExportReport) -> None:
    plain(f"{report.bag}:")
    for topic, count in report.messages.items():
        plain(f"  {topic}: {count} messages")
    if report.teachers:
        plain(f"  depth by {', '.join(report.teachers)}")
    if report.unreadable:
        plain(f"  {report.unreadable} frames are damaged, and were left out")


def _log_of(state: str) -> Path:
    path = StateFolder.resolve(state).frames
    if not path.exists():
        raise TiekdError(f"there is no frame log {path}; give the folder with --state")
    return path


def _open_recording(path: Path, options: ImportOptions) -> Recording[Any]:
    """Open a bag, or a folder of images with depth.

    Raises:
        TiekdError: it cannot be used as asked; the message says why and what would do.
    """
    if _is_rgbd_folder(path):
        return RgbdImport(path, options)
    require_rosbags()
    from tiekd_ros.bags.importing import BagImport

    return BagImport(path, options)


def _run_imports(
    imports: list[Recording[Any]], log: Path, settings: ImportSettings, as_json: bool
) -> None:
    """Import recordings into a frame log one after the other, and say what became of them.

    Raises:
        TiekdError: the log is full; the message says how to go on.
    """
    shown_on = None if as_json else console
    with FrameStore(log) as store:
        rule = store.rule
    chosen = [settings.for_recording(each.seconds, rule) for each in imports]
    reports: list[ImportReport] = []
    for each, kept in zip(imports, chosen, strict=True):
        # Nothing that is stored goes for what is imported: it may be what the robot alone has seen.
        with (
            FrameStore(log, kept, evicts=False) as store,
            progress("importing", shown_on) as track,
        ):
            reports.append(each.run(store, track(len(each))))
        if not as_json:
            _show_import(reports[-1])
        if reports[-1].stopped:
            break
    if as_json:
        typer.echo(json.dumps([asdict(report) for report in reports], indent=2))
    else:
        with FrameStore(log, read_only=True) as store:
            stats, rule = store.stats(), store.rule
        _show_log(log, stats, rule.block_s if rule else chosen[0].block_s)
    if reports[-1].stopped:
        raise _full(log, settings.max_bytes_mb, reports[-1], imports[len(reports) :])


def _full(log: Path, room_mb: int, last: ImportReport, rest: list[Recording[Any]]) -> TiekdError:
    others = ", ".join(each.report.bag for each in rest)
    return TiekdError(
        f"the frame log {log} is full (--max-bytes-mb {room_mb}): {last.not_looked_at} images of "
        f"{last.bag} were not looked at"
        + (f", and none of {others}" if others else "")
        + ". Nothing that was stored had to go. The same command with a larger --max-bytes-mb goes "
        "on from here; give the companion as much (parameter frames.max_bytes_mb)"
    )


def _show_import(report: ImportReport) -> None:
    source = report.image_topic
    if report.camera_info_topic:
        source += f", calibration from {report.camera_info_topic}"
    plain(f"{report.bag}: {source}")
    for note in report.notes:
        plain(f"  note: {note}")
    for warning in report.warnings:
        plain(f"  WARN: {warning}")
    before = report.looked_at_before
    looked_at = report.images - before
    if before:
        plain(f"  {before} of {report.images} images were looked at by an earlier import")
    if looked_at or not before:
        plain(f"  {report.kept} of {looked_at} images kept")
    else:
        plain("  nothing new; --again looks at all images anew")
    for reason, count in report.left_out.items():
        plain(f"  {count} left out: {_REASONS.get(reason, reason)}")


def _show_log(log: Path, stats: StoreStats, block_s: float) -> None:
    waiting = sum(stats.frames["logged"].values())
    held_out = sum(splits["held_out"] for splits in stats.frames.values())
    plain(f"{log}: {stats.total} frames, {held_out} of them held out, {waiting} without a label")
    if stats.total and not held_out:
        plain(
            f"  none is held out to judge students by: the first {block_s:g} s of a log never are. "
            "Import a longer recording, or start an empty log with a smaller --block"
        )
    if waiting:
        plain(f"  next: tiekd label --data {log.parent} --teacher HOST:PORT")


def _is_rgbd_folder(path: Path) -> bool:
    """Return whether a path looks like a folder of images with measured depth."""
    return (path / "depth").is_dir() and not (path / "metadata.yaml").exists()


class RgbdImport(Recording[int]):
    """An RGB-D folder that is to be logged, as `BagImport` is of a bag.

    Its depth becomes the frames' label, checked as a teacher's answer is. Images without depth
    are left out. Stamps are the recorded ones, or 30 images a second.

    Raises:
        InvalidSettingError: its images are to be rectified.
        DatasetError: the folder has no images with depth, no intrinsics, or wrong ones.
    """

    def __init__(self, path: Path, options: ImportOptions) -> None:
        if options.rectify:
            raise InvalidSettingError(
                f"--rectify is for bags: the images of {path} have measured depth, which would not "
                "fit any more; leave it out"
            )
        self._folder = RgbdFolder(path, ReadOptions(skip_bad=True))
        size = self._folder.image_size
        self._intrinsics: Intrinsics | None = self._folder.intrinsics
        if options.calibration is not None:
            self._intrinsics = options.calibration(size).intrinsics(*size)
        recorded = self._folder.has_stamps
        self._stamps_ns = self._folder.stamps_ns(_RATE_HZ)
        self._id = _recording_id(self._folder)
        report = ImportReport(str(path), "images with depth", "", len(self._folder))
        super().__init__(report, options)
        if not recorded:
            self.report.notes.append(f"no stamps are recorded: took {_RATE_HZ:g} images a second")
        if self._folder.report.bad:
            self.report.notes.append(f"{len(self._folder.report.bad)} images have no depth")

    def __len__(self) -> int:
        """Return the number of images with depth."""
        return len(self._folder)

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return (self._stamps_ns[-1] - self._stamps_ns[0]) / 1e9

    def close(self) -> None:
        """Nothing stays open."""

    def _images(self) -> Iterator[tuple[ImportCursor, int]]:
        mark = 0
        for index, name in enumerate(self._folder.names):
            mark = zlib.crc32(name.encode(), mark)  # of all up to here: none came in between
            yield ImportCursor(self._id, index + 1, mark), index

    def _recording_ids(self) -> Collection[str]:
        return [self._id]

    def _is_valid(self, cursor: ImportCursor) -> bool:
        names = "".join(self._folder.names[: cursor.images])
        return cursor.images <= len(self) and zlib.crc32(names.encode()) == cursor.mark

    def _add(self, store: FrameStore, image: int, cursor: ImportCursor) -> str:
        try:
            return self._add_checked(store, image, cursor)
        except DatasetError as error:
            self._faults.append(str(error))
            return UNREADABLE
        except (BadDepthError, TeacherAnswerError) as error:
            self._faults.append(f"{self._folder.names[image]}: {error}")
            return _BAD_DEPTH

    def _add_checked(self, store: FrameStore, index: int, cursor: ImportCursor) -> str:
        # gRPC, which this file spares its readers
        from tiekd_ros.teacher.protocol import DepthAnswer, check_answer

        item = self._folder.item(index)
        assert item.truth is not None
        height, width = item.image.shape[:2]
        check_answer(DepthAnswer(item.truth), width, height)
        seen = Observation(
            item.image, self._stamps_ns[index], _FRAME_ID, self._intrinsics, cursor=cursor
        )
        return store.add(seen, Label(item.truth, *_RECORDED)).reason

    def _conclude(self) -> None:
        if self._faults:
            self.report.notes.append(
                f"{len(self._faults)} images or depth maps are of no use; the first: "
                f"{self._faults[0]}"
            )


def _recording_id(folder: RgbdFolder) -> str:
    digest = hashlib.sha256(b"rgbd")
    digest.update(folder.names[0].encode())
    digest.update(folder.image(0).tobytes())
    return digest.hexdigest()[:32]
