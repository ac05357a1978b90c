"""`tiekd label`: a teacher's depth for every image of a data set or frame log."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tiekd_ros.cli.options import (
    AsJson,
    Data,
    Kind,
    SkipBad,
    Split,
    console,
    print_reasons,
    progress,
    with_given_settings,
    with_settings,
)
from tiekd_ros.teacher.backends import BACKENDS, backend_options
from tiekd_ros.teacher.settings import ClientSettings

_CONNECTION = (
    "tls", "ca", "cert", "key", "server_name", "token_file", "plaintext_token", "timeout_s",
)  # fmt: skip


@with_settings("client", ClientSettings, "Connection", only=_CONNECTION)
@with_given_settings("options", list(backend_options().values()), "Teacher in this process")
def label(
    data: Data,
    client: ClientSettings,
    options: dict[str, Any],
    kind: Kind = "auto",
    split: Split = None,
    teacher: Annotated[
        str, typer.Option(help="A teacher server (tiekd teacher serve).", metavar="HOST:PORT")
    ] = "",
    backend: Annotated[
        str,
        typer.Option(
            help=f"Instead of a server, in this process: {', '.join(BACKENDS)}; or KIND:ARGUMENT, "
            "as in huggingface:MODEL or onnx:FILE."
        ),
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the maps.", metavar="DIR", show_default="teacher/ in the data set"
        ),
    ] = None,
    rate: Annotated[
        float, typer.Option(help="Images a second, where no stamps are recorded.", min=0.001)
    ] = 30.0,
    min_known: Annotated[
        float,
        typer.Option(help="Least share of known depth in an answer that is believed.", min=0.0),
    ] = 0.05,
    in_flight: Annotated[
        int, typer.Option(help="Images under way at the same time.", min=1, max=32)
    ] = 2,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Drop the maps that are there, and start anew.")
    ] = False,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Have a teacher label every image of a data set; run it again to go on where it stopped.

    Writes one 16-bit PNG an image (KITTI, NYU: the published layout; folders: metres * 256)
    and teacher.json. Of a state folder it labels the waiting frames as the companion does: labels
    that cannot be believed are rejected, with the reason. Exits 1 where an image got no label,
    unless --skip-bad.
    """
    from tiekd_ros.evaluation.label import LabelOptions, label_data, open_teacher
    from tiekd_ros.teacher.checks import AnswerChecks

    wanted = LabelOptions(
        data=data,
        kind=kind,
        split=split,
        output=output,
        rate_hz=rate,
        overwrite=overwrite,
        skip_bad=skip_bad,
        in_flight=in_flight,
        checks=AnswerChecks(min_known_share=min_known),
    )
    opened = partial(open_teacher, replace(client, url=teacher), backend, options)
    with progress("labelling", None if as_json else console) as track:
        report = label_data(wanted, opened, track)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        where = f"; maps in {report.output}" if report.output else ""
        console.print(
            f"{report.labelled} images labelled, {report.kept} had a label, "
            f"{len(report.failed)} failed{where}",
            highlight=False,
        )
        print_reasons(report.failed)
    if report.failed and not skip_bad:
        raise typer.Exit(1)
