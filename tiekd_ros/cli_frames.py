"""`tiekd frames`: what the frame log holds, bags into it, and back out of it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tiekd_ros.cli_options import AsJson, State, console, progress, with_settings
from tiekd_ros.datasets.calibration import read_intrinsics
from tiekd_ros.errors import InvalidSettingError, TiekdError
from tiekd_ros.frames import FrameStore, ImportSettings, StoreStats
from tiekd_ros.frames.bags import require_rosbags
from tiekd_ros.frames.imports import ImportOptions, ImportReport, Recording
from tiekd_ros.state import StateFolder

if TYPE_CHECKING:
    from tiekd_ros.frames.bags.exporting import ExportReport

frames = typer.Typer(
    help="The frame log of a state folder, and bags into it and out of it.", no_args_is_help=True
)

_REASONS = {
    "too_soon": "followed the last kept one too closely (--min-interval)",
    "blurred": "blurred (--min-sharpness)",
    "underexposed": "too dark (--min-brightness, --max-clipped-share)",
    "overexposed": "too bright (--max-brightness, --max-clipped-share)",
    "not_novel": "look like a stored one (--min-novelty)",
    "split_guard": "at a border between training and held-out time (--guard-share)",
    "not_asked_for": "passed over (--every)",
    "unreadable": "cannot be read",
    "bad_depth": "have a depth map that would not be believed of a teacher",
}


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
    bags: Annotated[
        list[Path],
        typer.Argument(
            help="rosbag2 folders (SQLite or MCAP), single .mcap or .db3 files, ROS 1 bags, "
            "folders of images with measured depth (images/, depth/, K.txt).",
            metavar="BAG...",
            show_default=False,
        ),
    ],
    settings: ImportSettings,
    state: State = "",
    image_topic: Annotated[
        str,
        typer.Option(
            help="The camera's images, raw or compressed.",
            metavar="TOPIC",
            show_default="the only one",
        ),
    ] = "",
    camera_info: Annotated[
        str,
        typer.Option(
            help="The camera's calibration: a topic of the bag, or a file (K.txt, camera.yaml).",
            metavar="TOPIC|FILE",
            show_default="camera_info beside the images",
        ),
    ] = "",
    every: Annotated[int, typer.Option(help="Only one image in so many.", min=1)] = 1,
    again: Annotated[
        bool,
        typer.Option("--again", help="Look at images anew that an earlier import has looked at."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Log the images of recordings, as the companion logs a camera's: to be labelled and learnt.

    What looks like a stored frame, is blurred, or follows the last one too closely is left out,
    and counted. Stop it at any moment and run it again: it goes on where it was, and nothing is
    logged twice. A bag that was cut off, has lost files or its metadata is read as far as it is
    whole. Where one of the bags cannot be used, nothing is imported.

    Of a folder of images with depth the depth becomes the frames' label, by the teacher "recorded".
    Then have a teacher label the frames (`tiekd label --data STATE`), and learn from them
    (`tiekd distill`). docs/bags.md has more.
    """
    options = _import_options(image_topic, camera_info, every, again)
    with contextlib.ExitStack() as stack:
        imports: list[Recording] = []
        for bag in bags:
            imports.append(_open_recording(bag.expanduser(), options))
            stack.callback(imports[-1].close)
        log = StateFolder.resolve(state).create().frames
        _run_imports(imports, log, settings, as_json)


def _open_recording(path: Path, options: ImportOptions) -> Recording:
    from tiekd_ros.offline.rgbd_import import RgbdImport, is_rgbd_folder

    if is_rgbd_folder(path):
        return RgbdImport(path, options)
    require_rosbags()
    from tiekd_ros.frames.bags.importing import BagImport

    return BagImport(path, options)


def _import_options(topic: str, camera_info: str, every: int, again: bool) -> ImportOptions:
    file = Path(camera_info).expanduser()
    if camera_info and file.is_file():
        return ImportOptions(topic, "", lambda size: read_intrinsics(file, size), every, again)
    if file.suffix in (".txt", ".yaml", ".yml"):
        raise InvalidSettingError(f"--camera-info: there is no file {file}")
    return ImportOptions(topic, camera_info, None, every, again)


def _run_imports(
    imports: list[Recording], log: Path, settings: ImportSettings, as_json: bool
) -> None:
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
        typer.echo(json.dumps([report.as_dict() for report in reports], indent=2))
    else:
        with FrameStore(log, read_only=True) as store:
            stats, rule = store.stats(), store.rule
        _show_log(log, stats, rule.block_s if rule else chosen[0].block_s)
    if reports[-1].stopped:
        raise _full(log, settings.max_bytes_mb, reports[-1], imports[len(reports) :])


def _full(log: Path, room_mb: int, last: ImportReport, rest: list[Recording]) -> TiekdError:
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
    _print(f"{report.bag}: {source}")
    for note in report.notes:
        _print(f"  note: {note}")
    before = report.looked_at_before
    looked_at = report.images - before
    if before:
        _print(f"  {before} of {report.images} images were looked at by an earlier import")
    if looked_at or not before:
        _print(f"  {report.kept} of {looked_at} images kept")
    else:
        _print("  nothing new; --again looks at all images anew")
    for reason, count in report.left_out.items():
        _print(f"  {count} left out: {_REASONS.get(reason, reason)}")


def _show_log(log: Path, stats: StoreStats, block_s: float) -> None:
    waiting = sum(stats.frames["logged"].values())
    held_out = sum(splits["held_out"] for splits in stats.frames.values())
    _print(f"{log}: {stats.total} frames, {held_out} of them held out, {waiting} without a label")
    if stats.total and not held_out:
        _print(
            f"  none is held out to judge students by: the first {block_s:g} s of a log never are. "
            "Import a longer recording, or start an empty log with a smaller --block"
        )
    if waiting:
        _print(f"  next: tiekd label --data {log.parent} --teacher HOST:PORT")


@frames.command("export")
def frames_export(
    output: Annotated[
        Path, typer.Argument(help="Folder of the bag; must not exist yet.", metavar="OUT")
    ],
    state: State = "",
    form: Annotated[
        str, typer.Option("--format", help="mcap or sqlite3.", metavar="FORMAT")
    ] = "mcap",
    compressed: Annotated[
        bool,
        typer.Option(
            "--compressed", help="Write the stored JPEGs (CompressedImage), not raw images."
        ),
    ] = False,
    labelled: Annotated[
        bool, typer.Option("--labelled", help="Only frames that a teacher has labelled.")
    ] = False,
    split: Annotated[
        str, typer.Option(help="Only this split: train or held_out.", show_default="both")
    ] = "",
    namespace: Annotated[str, typer.Option(help="Where the topics lie.")] = "/camera",
    as_json: AsJson = False,
) -> None:
    """Write the logged frames as a rosbag2: images, calibration, and the teacher's depth.

    `image_raw` (or `image_raw/compressed`), `camera_info`, and of labelled frames
    `teacher/depth` (32FC1, metres, NaN = unknown) with `teacher/camera_info`, with the frames'
    stamps. `ros2 bag play OUT`, RViz and Foxglove open it. Rejected frames are left out.
    """
    require_rosbags()
    from tiekd_ros.frames.bags.exporting import FORMATS, ExportOptions, export_bag
    from tiekd_ros.frames.browsing import StoredFrames

    _check_choice("--format", form, tuple(FORMATS))
    _check_choice("--split", split, ("", "train", "held_out"))
    stored = StoredFrames(_log_of(state), labelled=labelled, split=split or None)  # type: ignore[arg-type]
    with (
        contextlib.closing(stored),
        progress("exporting", None if as_json else console) as track,
    ):
        options = ExportOptions(form, compressed, namespace)
        report = export_bag(stored, output, options, track(len(stored)))
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
        return
    _show_export(report)


def _show_export(report: ExportReport) -> None:
    _print(f"{report.bag}:")
    for topic, count in report.messages.items():
        _print(f"  {topic}: {count} messages")
    if report.teachers:
        _print(f"  depth by {', '.join(report.teachers)}")
    if report.unreadable:
        _print(f"  {report.unreadable} frames are damaged, and were left out")


def _log_of(state: str) -> Path:
    path = StateFolder.resolve(state).frames
    if not path.exists():
        raise TiekdError(f"there is no frame log {path}; give the folder with --state")
    return path


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidSettingError(
            f"{option} must be one of {', '.join(filter(None, choices))}, got {value!r}"
        )


def _print(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
