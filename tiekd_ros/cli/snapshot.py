"""`tiekd snapshot`: pictures of what the running nodes publish."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.status import Status

from tiekd_ros.cli.options import console
from tiekd_ros.core.errors import TiekdError

_LINE_EVERY_S = 3.0


def snapshot(
    output: Annotated[Path, typer.Argument(help="Folder for the pictures.", metavar="OUT")],
    namespace: Annotated[str, typer.Option(help="Of the nodes.")] = "tiekd",
    image_topic: Annotated[
        str, typer.Option(help="The camera's.", show_default="what the depth node listens to")
    ] = "",
    timeout: Annotated[
        float, typer.Option(help="How long to wait for depth (s).", min=0.1, max=3600.0)
    ] = 20.0,
) -> None:
    """Write pictures of one moment of the running nodes: image, depth, preview and point cloud.

    All are of one camera image. Files: image.png, depth_mm.png (16 bits, millimetres, 0 = none),
    preview.png (with the depths of its colours), points.png (from beside the camera and from above)
    and snapshot.json. Files of these names in OUT are replaced. Exits 1 if a part, or the depth
    node's diagnostics, are missing, and says why.
    """
    from tiekd_ros.core.supervisor import prepare_environment, require_ros

    require_ros()
    prepare_environment()
    if output.exists() and not output.is_dir():
        raise TiekdError(f"{output} is a file; give a folder")
    from tiekd_ros.nodes.probe.snapshot import SnapshotTaker, write_snapshot

    with (
        SnapshotTaker(namespace, image_topic) as taker,
        console.status("waiting for depth") as status,
    ):
        taken = taker.take(timeout, _Progress(status).show)
        files = write_snapshot(taken, output)
    for file in files:
        console.print(str(file), highlight=False, soft_wrap=True)
    if taken.missing:
        reasons = "; ".join(f"no {part}: {why}" for part, why in taken.missing.items())
        raise TiekdError(f"the snapshot is not whole: {reasons}")


class _Progress:
    """Shows what has come so far: a line that changes on a terminal, now and then one elsewhere."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._spoken = time.monotonic()

    def show(self, counts: Mapping[str, int]) -> None:
        text = "waiting; so far " + ", ".join(f"{part} {n}" for part, n in counts.items())
        if console.is_terminal:
            self._status.update(text)
        elif time.monotonic() - self._spoken > _LINE_EVERY_S:
            self._spoken = time.monotonic()
            console.print(text, highlight=False, soft_wrap=True)
