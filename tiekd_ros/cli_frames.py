"""`tiekd frames`: what the frame log holds, bags into it, and back out of it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tiekd_ros.cli_frames_import import open_recording, run_imports
from tiekd_ros.cli_options import AsJson, State, console, plain, progress, with_settings
from tiekd_ros.datasets.calibration import read_camera_model
from tiekd_ros.errors import InvalidSettingError, TiekdError
from tiekd_ros.frames import FrameStore, ImportSettings
from tiekd_ros.frames.bags import require_rosbags
from tiekd_ros.frames.imports import Calibration, ImportOptions, Recording
from tiekd_ros.state import StateFolder

if TYPE_CHECKING:
    from tiekd_ros.frames.bags.exporting import ExportReport

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
    bool, typer.Option("--again", help="Look at images anew that an earlier import has looked at.")
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
    options = ImportOptions(image_topic, topic, calibration, every, again, rectify)
    with contextlib.ExitStack() as stack:
        imports: list[Recording] = []
        for bag in bags:
            imports.append(open_recording(bag.expanduser(), options))
            stack.callback(imports[-1].close)
        log = StateFolder.resolve(state).create().frames
        run_imports(imports, log, settings, as_json)


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


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidSettingError(
            f"{option} must be one of {', '.join(filter(None, choices))}, got {value!r}"
        )
