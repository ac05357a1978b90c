"""Which loss teaches best? The same student, data and budget; only the loss differs.

    python benchmarks/ablation.py --quick                     less than 10 minutes on 2 cores
    python benchmarks/ablation.py --json ablation.json        the whole table: an hour

Every run starts from random weights and sees the same batches in the same order. Reported is
what the last weights do on test images that share no scene (synthetic world) or no time (real
frames) with the training images: mean and standard deviation over seeds. With `--json`, runs
that the file has already are not repeated, so an interrupted table goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the runs are what is parallel

import numpy as np
import torch
from ablation_data import Split, load, real, save, synthetic
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tiekd_ros.method.losses import LossSettings
from tiekd_ros.method.metrics import depth_metrics, mean_metrics
from tiekd_ros.method.samples import AugmentSettings, Sample
from tiekd_ros.rounds.trainer import Trainer, TrainSettings
from tiekd_ros.student import DepthBins, InputSize, Student, StudentCard, TorchRuntime

_PIXELS = 12288  # of the network's input: 96x128 for 4:3 images
_RANGE_M = 10.0
_NEAR_M = 3.0
_FRAMES = Path("../shared/data/hololens")
_COLUMNS = ("abs_rel", "rmse", "a1", "near_abs_rel")


@dataclass(frozen=True)
class Arm:
    """One way to teach."""

    name: str
    family: str
    objective: str
    labels: str = "taught"
    spacing: str = "uniform"
    loss: dict[str, Any] = field(default_factory=dict)


ARMS = (
    Arm("SI on sparse truth", "no distillation", "si", labels="measured"),
    Arm("SSIM", "response", "ssim"),
    Arm("MSE", "response", "mse"),
    Arm("SI", "response", "si"),
    Arm("SSIM + SI", "response", "ssim+si"),
    Arm("SSIM + MSE", "response", "ssim+mse"),
    Arm("L_DPM", "TIE-KD, paper", "paper-dpm"),
    Arm("L_DEPTH", "TIE-KD, paper", "paper-depth"),
    Arm("both", "TIE-KD, paper", "paper"),
    Arm("L_DPM", "TIE-KD, tiekd", "tiekd-dpm"),
    Arm("L_DEPTH", "TIE-KD, tiekd", "tiekd-depth"),
    Arm("both", "TIE-KD, tiekd", "tiekd"),
    Arm("both, log bins", "TIE-KD, tiekd", "tiekd", spacing="log", loss={"sigma_floor_m": 0.02}),
    Arm("both, holes masked", "TIE-KD, tiekd", "tiekd", labels="known"),
)


@dataclass(frozen=True)
class DataFile:
    """A data set as all runs with one seed see it."""

    name: str
    seed: int
    path: str
    digest: str


@dataclass(frozen=True)
class Job:
    """One training: an arm on a data set."""

    data: DataFile
    arm: int
    iterations: int

    @property
    def key(self) -> dict[str, Any]:
        """What makes two runs the same."""
        return {
            "data": self.data.name,
            "digest": self.data.digest,
            "seed": self.data.seed,
            "iterations": self.iterations,
            "arm": asdict(ARMS[self.arm]),
        }


def run(job: Job) -> dict[str, Any]:
    """Train and judge; runs in a process of its own."""
    torch.set_num_threads(1)
    arm, split = ARMS[job.arm], load(Path(job.data.path))
    torch.manual_seed(job.data.seed)
    height, width = split.test[0].depth.shape
    card = StudentCard(
        bins=DepthBins(max_depth_m=_RANGE_M, spacing=arm.spacing),
        input_size=InputSize(height=height, width=width),
    )
    student = Student.fresh(card)
    settings = TrainSettings(iterations=job.iterations, seed=job.data.seed, threads=1)
    loss = LossSettings(objective=arm.objective, **arm.loss)
    samples = getattr(split, arm.labels)
    trainer = Trainer(
        student.network,
        samples,
        settings,
        loss=loss,
        augmentation=AugmentSettings(),
        has_parent=False,
    )
    begun = time.monotonic()
    trainer.run(lambda progress: None)
    seconds = round(time.monotonic() - begun, 1)
    runtime = TorchRuntime(student)
    scores = {"validation": judge(runtime, split.validation), "test": judge(runtime, split.test)}
    return {**job.key, "seconds": seconds, **scores}


def judge(runtime: TorchRuntime, samples: list[Sample]) -> dict[str, float]:
    """Return mean metrics over samples, and AbsRel where the truth is nearer than 3 m."""
    low = runtime.card.bins.min_depth_m
    everything, near = [], []
    for sample in samples:
        depth = runtime.predict(sample.image).depth
        everything.append(depth_metrics(depth, sample.depth, low, _RANGE_M))
        close = np.where(sample.depth < _NEAR_M, sample.depth, np.float32(np.nan))
        near.append(depth_metrics(depth, close, low, _RANGE_M))
    whole = mean_metrics([m for m in everything if m is not None])
    nearby = mean_metrics([m for m in near if m is not None])
    return {**whole.as_dict(), "near_abs_rel": nearby.abs_rel}


def prepare(options: argparse.Namespace, folder: Path, console: Console) -> list[DataFile]:
    """Make the data sets, one file a seed."""
    files = []

    def keep(name: str, seed: int, split: Split) -> None:
        path = folder / f"{name}_{seed}.npz"
        files.append(DataFile(name, seed, str(path), save(path, split)))

    if options.frames is None:
        console.print("no folder of real frames (--frames): synthetic world only")
    for seed in range(options.seeds):
        size = InputSize.near(240, 320, _PIXELS)
        keep("synthetic", seed, synthetic(options.scenes, size, seed, console.print))
        if options.frames is not None:
            keep(options.frames.name, seed, real(options.frames, size, seed))
    return files


def pending(jobs: list[Job], done: list[dict[str, Any]]) -> Iterator[Job]:
    """Yield the jobs whose results are not there."""
    known = [key_of(row) for row in done]
    for job in jobs:
        if job.key not in known:
            yield job


def key_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return the key of the job that a result came from."""
    return {k: row.get(k) for k in ("data", "digest", "seed", "iterations", "arm")}


def table_of(rows: list[dict[str, Any]], data: str) -> list[tuple[Arm, dict[str, list[float]]]]:
    """Return each arm's test scores by column, one value a seed."""
    lines = []
    for arm in ARMS:
        some = [r["test"] for r in rows if r["data"] == data and r["arm"] == asdict(arm)]
        if some:
            lines.append((arm, {c: [s[c] for s in some] for c in _COLUMNS}))
    return lines


def show(rows: list[dict[str, Any]], console: Console) -> str:
    """Print a table for each data set; return the same as Markdown."""
    text = []
    for data in dict.fromkeys(row["data"] for row in rows):
        lines = table_of(rows, data)
        seeds = max(len(scores["rmse"]) for _, scores in lines)
        heads = ("family", "loss", "AbsRel", "RMSE [m]", "a1", "AbsRel < 3 m")
        table = Table(title=f"{data}, test images, mean ± standard deviation, seeds: {seeds}")
        for head in heads:
            table.add_column(head, no_wrap=True)
        text += [f"\n**{data}**, seeds: {seeds}\n", "| " + " | ".join(heads) + " |"]
        text.append("|---" * len(heads) + "|")
        best = {c: (max if c == "a1" else min)(np.mean(s[c]) for _, s in lines) for c in _COLUMNS}
        for arm, scores in lines:
            cells = [in_words(scores[c]) for c in _COLUMNS]
            marks = [np.mean(scores[c]) == best[c] for c in _COLUMNS]
            shown = [f"[bold]{t}[/]" if m else t for t, m in zip(cells, marks, strict=True)]
            table.add_row(arm.family, arm.name, *shown)
            marked = [f"**{t}**" if m else t for t, m in zip(cells, marks, strict=True)]
            text.append(f"| {arm.family} | {arm.name} | " + " | ".join(marked) + " |")
        console.print(table)
    return "\n".join(text) + "\n"


def in_words(values: list[float]) -> str:
    """Return mean and, of several values, sample standard deviation."""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def options_of(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(
        description=summary, epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer scenes, seeds and iterations")
    parser.add_argument(
        "--frames",
        type=Path,
        help=f"RGB-D folder of real frames in time order (default: {_FRAMES}, if it is there)",
    )
    parser.add_argument(
        "--only", default="", choices=sorted({a.objective for a in ARMS}), help="one objective"
    )
    parser.add_argument("--seeds", type=int, help="runs of each arm (3; quick: 1)")
    parser.add_argument("--iterations", type=int, help="steps of a run (300; quick: 120)")
    parser.add_argument(
        "--scenes", type=int, nargs=3, help="train, validation, test (12 3 6; quick: 6 2 3)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--json", type=Path, help="results, added to after every run")
    parser.add_argument("--markdown", type=Path, help="write the tables here, too")
    options = parser.parse_args(arguments)
    options.seeds = options.seeds or (1 if options.quick else 3)
    options.iterations = options.iterations or (120 if options.quick else 300)
    options.scenes = options.scenes or ((6, 2, 3) if options.quick else (12, 3, 6))
    if options.frames is not None and not options.frames.is_dir():
        parser.error(f"there is no folder {options.frames}: --frames wants images/, depth/, K.txt")
    options.frames = options.frames or (_FRAMES if _FRAMES.is_dir() else None)
    return options


def main(arguments: list[str]) -> None:
    """Make the table."""
    options = options_of(arguments)
    console = Console()
    done = []
    if options.json is not None and options.json.exists():
        done = json.loads(options.json.read_text())["runs"]
    with tempfile.TemporaryDirectory() as folder:
        files = prepare(options, Path(folder), console)
        jobs = [
            Job(data, arm, options.iterations)
            for data in files
            for arm in range(len(ARMS))
            if options.only in ("", ARMS[arm].objective)
            and (ARMS[arm].labels != "known" or data.name != "synthetic")  # there: as taught
        ]
        left = list(pending(jobs, done))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.jobs, context) as pool, Progress(console=console) as bar:
            task = bar.add_task("runs", total=len(jobs), completed=len(jobs) - len(left))
            for future in as_completed([pool.submit(run, job) for job in left]):
                done.append(future.result())
                bar.advance(task)
                if options.json is not None:
                    write(options.json, done)
    wanted = [job.key for job in jobs]
    text = show([row for row in done if key_of(row) in wanted], console)
    if options.markdown is not None:
        options.markdown.write_text(text)


def write(path: Path, runs: list[dict[str, Any]]) -> None:
    """Replace the results file at one stroke."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"torch": torch.__version__, "runs": runs}, indent=1) + "\n")
    new.replace(path)


if __name__ == "__main__":
    main(sys.argv[1:])
