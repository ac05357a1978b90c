"""Compare this project with numbers that the published TIE-KD code produced.

    python benchmarks/verify_reference.py DIR [--json FILE]

DIR holds fixtures, in subfolders too: *.npz files of the losses, SSIM, metrics, schedule,
augmentation, networks and training steps, and *.json lists of the official networks' keys. Every
quantity of every file is computed with this project and compared. Exits 0 only if all agree
within their tolerance, and nothing was left unchecked: a missing array, a quantity without a
check, an empty folder and every file that is no such fixture, except *.md, are misses.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from reference.checks import Check, Fixture, FixtureError, failed
from reference.kinds import check_fixture
from reference.networks import check_key_list
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

TEXTS = ".md"


def main(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of fixtures.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the table here.")
    ] = None,
) -> None:
    """Compare this project with every fixture in DIR."""
    torch.set_num_threads(1)  # the same numbers on any machine, and as fast on a busy one
    console = Console()
    paths = find_files(folder) if folder.is_dir() else []
    if not paths:
        console.print(f"no file to check in {folder}: nothing was checked", style="red")
        raise typer.Exit(1)
    checks, seconds = run(folder, paths, console)
    console.print(make_table(checks))
    misses = [check for check in checks if not check.ok]
    if misses:  # once more: among hundreds of rows they are hard to find
        console.print(make_table(misses))
    verdict = f"{len(misses)} misses" if misses else "all agree"
    console.print(
        f"{len(paths)} files, {len(checks)} quantities, {sum(seconds.values()):.1f} s: {verdict}",
        style="red" if misses else "green",
    )
    if json_file is not None:
        json_file.write_text(json.dumps(make_report(folder, checks, seconds), indent=1) + "\n")
    if misses:
        raise typer.Exit(1)


def find_files(folder: Path) -> list[Path]:
    """Return every file but texts, at any depth.

    Nothing is passed over: links to folders and folders that cannot be listed are returned too.
    """
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            try:
                found += find_files(path)
            except OSError:
                found.append(path)
        elif path.suffix != TEXTS:
            found.append(path)
    return found


def run(folder: Path, paths: list[Path], console: Console) -> tuple[list[Check], dict[str, float]]:
    """Check every file; return the checks and the seconds that each file took."""
    checks: list[Check] = []
    seconds: dict[str, float] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # On the error stream: the table is what a pipe gets.
    errors = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=errors, transient=True) as progress:
        task = progress.add_task("", total=len(paths))
        for path in paths:
            name = path.relative_to(folder).as_posix()
            progress.update(task, description=name)
            start = time.perf_counter()
            checks += check_file(path, name)
            seconds[name] = time.perf_counter() - start
            progress.advance(task)
    return checks, seconds


def check_file(path: Path, name: str) -> list[Check]:
    """Check one file; what makes that impossible is a miss too."""
    fixture: Fixture | None = None
    try:
        if path.suffix == ".json":
            return check_key_list(path, name)
        if path.suffix != ".npz":
            raise FixtureError("unknown kind of file: neither *.npz nor *.json")
        fixture = Fixture(path, name)
        check_fixture(fixture)
    except FixtureError as error:
        problem = str(error)
    except Exception as error:  # arrays that do not fit each other, however they show it
        problem = f"could not be checked: {type(error).__name__}: {error}"
    else:
        return fixture.finish()
    done = fixture.checks if fixture is not None else []
    return [*done, failed(name, "the whole file", problem)]


def make_table(checks: list[Check]) -> Table:
    """Return the checks as a table, one line each."""
    table = Table("file", "quantity", "largest deviation", "tolerance", "ok")
    last = ""
    for check in checks:
        deviation = "" if check.deviation is None else f"{check.deviation:.2e}"
        tolerance = ""
        if check.tolerance is not None:
            limit, unit = check.tolerance
            tolerance = unit if limit == 0 else f"{limit:.1e} {unit}"
        quantity = f"{check.quantity} ({check.note})" if check.note else check.quantity
        name = check.file if check.file != last else ""
        mark = "[green]yes[/]" if check.ok else "[bold red]NO[/]"
        table.add_row(name, quantity, deviation, tolerance, mark)
        last = check.file
    return table


def make_report(folder: Path, checks: list[Check], seconds: dict[str, float]) -> dict[str, Any]:
    """Return the same for machines."""
    return {
        "folder": str(folder),
        "ok": all(check.ok for check in checks),
        "files": seconds,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
        "checks": [
            {
                "file": check.file,
                "quantity": check.quantity,
                "deviation": check.deviation,
                "tolerance": check.tolerance.limit if check.tolerance else None,
                "unit": check.tolerance.unit if check.tolerance else None,
                "ok": check.ok,
                "note": check.note,
            }
            for check in checks
        ],
    }


if __name__ == "__main__":
    typer.run(main)
