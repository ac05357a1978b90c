"""Compare this project with numbers that the published TIE-KD code produced.

    python benchmarks/verify_reference.py DIR [--json FILE]

DIR holds fixtures, in subfolders too: *.npz files of the losses, SSIM, metrics, schedule,
augmentation, networks and training steps, and *.json lists of the official networks' keys. Every
quantity of every file is computed with this project and compared. Exits 0 only if all agree
within their tolerance, and nothing was left unchecked: a missing array, a quantity without a
check, an empty folder and every file that is no such fixture, except *.md, are misses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import torch
from harness import (
    MISSED,
    RESULTS,
    console,
    machine,
    parser,
    print_table,
    progress,
    run,
    write_json,
)
from reference.checks import Check, Fixture, FixtureError, failed
from reference.losses import check_response, check_ssim, check_tiekd, check_width_704
from reference.metrics import check_image, check_vectors
from reference.networks import check_key_list, check_student
from reference.training import check_one_cycle, check_pipeline, check_train_step

TEXTS = ".md"

KINDS: tuple[tuple[Callable[[Fixture], None], str, tuple[set[str], ...]], ...] = (
    (check_width_704, "tiekd_kitti_w704", ({"logits_rows", "logits_cols"},)),
    (check_tiekd, "tiekd_", ({"logits", "kd_gt"}, {"logits_q", "kd_gt"})),
    (check_response, "reskd_", ({"logit", "kd_gt"},)),
    (check_ssim, "ssim_", ({"window", "ssim_ab"},)),
    (check_vectors, "metrics_vectors", ({"gt_0", "metrics_0"},)),
    (check_image, "metrics_", ({"gt_png_nz_val", "pred_rows"},)),
    (check_one_cycle, "onecycle", ({"total_iters", "lr"},)),
    (check_pipeline, "train_pipeline", ({"draw_names", "crop_size"},)),
    (check_train_step, "trainstep_", ({"param_names", "grad_norms"},)),
    (check_student, "student_", ({"s0_input_key", "s0_input_shape"},)),
)
"""Check of each kind of file. Any of its sets of arrays tells the kind, or else its prefix."""


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__ or "", has_quick=False)
    made.add_argument("folder", type=Path, metavar="DIR", help="folder of fixtures")
    options = made.parse_args(argv)
    folder: Path = options.folder
    torch.set_num_threads(1)  # the same numbers on any machine, and as fast on a busy one
    paths = list(find_files(folder)) if folder.is_dir() else []
    if not paths:
        console().print(f"no file to check in {folder}: nothing was checked", style="red")
        return MISSED
    checks: list[Check] = []
    seconds: dict[str, float] = {}
    with progress() as bar:
        task = bar.add_task("", total=len(paths))
        for path in paths:
            name = path.relative_to(folder).as_posix()
            bar.update(task, description=name)
            start = time.perf_counter()
            checks += check_file(path, name)
            seconds[name] = time.perf_counter() - start
            bar.advance(task)
    print_checks("Quantities", checks)
    misses = [check for check in checks if not check.ok]
    if misses:  # once more: among hundreds of rows they are hard to find
        print_checks("Misses", misses)
    verdict = f"{len(misses)} misses" if misses else "all agree"
    console().print(
        f"{len(paths)} files, {len(checks)} quantities, {sum(seconds.values()):.1f} s: {verdict}",
        style="red" if misses else "green",
    )
    report = {"folder": folder, "ok": not misses, "files": seconds, "checks": checks}
    report |= {"versions": {**machine(), "opencv": cv2.__version__}}
    write_json(options.json or RESULTS / "verify_reference.json", report)
    return MISSED if misses else 0


def find_files(folder: Path) -> Iterator[Path]:
    """Yield every file but texts, at any depth.

    Nothing is passed over: links to folders and folders that cannot be listed are yielded too.
    """
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            try:
                yield from find_files(path)
            except OSError:
                yield path
        elif path.suffix != TEXTS:
            yield path


def check_file(path: Path, name: str) -> list[Check]:
    """Check one file; what makes that impossible is a miss too."""
    done: list[Check] = []
    try:
        if path.suffix == ".json":
            return check_key_list(path, name)
        if path.suffix != ".npz":
            raise FixtureError("unknown kind of file: neither *.npz nor *.json")
        fixture = Fixture(path, name)
        done = fixture.checks
        kind_of(fixture)(fixture)
        return fixture.finish()
    except FixtureError as error:
        problem = str(error)
    except Exception as error:  # arrays that do not fit each other, however they show it
        problem = f"could not be checked: {type(error).__name__}: {error}"
    return [*done, failed(name, "the whole file", problem)]


def kind_of(fixture: Fixture) -> Callable[[Fixture], None]:
    """Return what checks a file of this kind.

    Raises:
        FixtureError: neither arrays nor name fit any.
    """
    for check, _, groups in KINDS:
        if any(group <= fixture.arrays.keys() for group in groups):
            return check
    for check, prefix, _ in KINDS:
        if fixture.path.name.startswith(prefix):
            return check
    names = ", ".join(sorted(fixture.arrays)[:6])
    raise FixtureError(f"unknown kind of fixture, with arrays {names}, ...")


def print_checks(title: str, checks: list[Check]) -> None:
    rows, styles = [], {}
    last = ""
    for index, check in enumerate(checks):
        deviation = None if check.deviation is None else f"{check.deviation:.2e}"
        limit = f"{check.tolerance:.1e} {check.unit}" if check.tolerance else check.unit
        rows.append(
            {
                "file": check.file if check.file != last else "",
                "quantity": f"{check.quantity} ({check.note})" if check.note else check.quantity,
                "largest deviation": deviation,
                "tolerance": limit,
                "ok": "yes" if check.ok else "NO",
            }
        )
        styles[index, "ok"] = "green" if check.ok else "bold red"
        last = check.file
    print_table(title, rows, styles)


if __name__ == "__main__":
    run(main)
