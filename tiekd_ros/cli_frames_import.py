"""`tiekd frames import`, behind its options: recordings opened, run one by one, and reported."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from tiekd_ros.cli_options import console, plain, progress
from tiekd_ros.errors import TiekdError
from tiekd_ros.frames import FrameStore, ImportSettings, StoreStats
from tiekd_ros.frames.bags import require_rosbags
from tiekd_ros.frames.imports import ImportOptions, ImportReport, Recording

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


def open_recording(path: Path, options: ImportOptions) -> Recording:
    """Open a bag, or a folder of images with depth.

    Raises:
        TiekdError: it cannot be used as asked; the message says why and what would do.
    """
    from tiekd_ros.offline.rgbd_import import RgbdImport, is_rgbd_folder

    if is_rgbd_folder(path):
        return RgbdImport(path, options)
    require_rosbags()
    from tiekd_ros.frames.bags.importing import BagImport

    return BagImport(path, options)


def run_imports(
    imports: list[Recording], log: Path, settings: ImportSettings, as_json: bool
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
