"""`tiekd label`: a teacher's depth for every image of a data set or frame log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

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
)


def label(
    data: Data,
    kind: Kind = "auto",
    split: Split = None,
    teacher: Annotated[
        str, typer.Option(help="A teacher server (tiekd teacher serve).", metavar="HOST:PORT")
    ] = "",
    backend: Annotated[
        str,
        typer.Option(
            help="Instead of a server, in this process: recorded or synthetic, or KIND:ARGUMENT, "
            "as in huggingface:MODEL or onnx:FILE."
        ),
    ] = "",
    frames: Annotated[
        str, typer.Option(help="recorded: folder with images/, depth/, K.txt.", metavar="DIR")
    ] = "",
    seed: Annotated[int, typer.Option(help="synthetic: the camera's seed.", min=0)] = 0,
    period: Annotated[float, typer.Option(help="synthetic: the camera's period in s.")] = 60.0,
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
        int, typer.Option(help="Images under way at the same time.", min=1, max=64)
    ] = 2,
    tls: Annotated[
        bool, typer.Option("--tls", help="Use TLS, by the system's authorities where no --ca is.")
    ] = False,
    ca: Annotated[
        str, typer.Option(help="Use TLS: PEM file with the server's authority.", metavar="FILE")
    ] = "",
    cert: Annotated[
        str, typer.Option(help="Mutual TLS: PEM file with this side's certificate.", metavar="FILE")
    ] = "",
    key: Annotated[
        str, typer.Option(help="Mutual TLS: PEM file with its private key.", metavar="FILE")
    ] = "",
    token_file: Annotated[
        str,
        typer.Option(
            help="File with the server's token.",
            metavar="FILE",
            show_default="the variable TIEKD_TEACHER_TOKEN",
        ),
    ] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Drop the maps that are there, and start anew.")
    ] = False,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Have a teacher label every image of a data set; run it again to go on where it stopped.

    Writes one 16-bit PNG an image (KITTI, NYU: the published layout; folders: metres * 256)
    and teacher.json, or labels the waiting frames of a frame log. Exits 1 where an image got
    no label, unless --skip-bad.
    """
    from tiekd_ros.evaluation.label import LabelOptions, TeacherOptions, label_data

    asked = TeacherOptions(
        teacher, backend, frames, seed, period, min_known, in_flight, ca, cert, key, token_file, tls
    )
    options = LabelOptions(data, kind, split, asked, output, rate, overwrite, skip_bad)
    with progress("labelling", None if as_json else console) as track:
        report = label_data(options, track)
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
