"""The loop of an offline training: steps, curves, validation, exports, snapshots."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.tensorboard import SummaryWriter

from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.method.losses import LossParts, make_objective
from tiekd_ros.method.metrics import shared_batches
from tiekd_ros.method.samples import cell_depth
from tiekd_ros.method.stepping import BadSteps, Step, Stepper, TrainingError
from tiekd_ros.report.pictures import colour_depth
from tiekd_ros.student.architecture import StudentNetwork
from tiekd_ros.student.checkpoint import Student, replace_durably
from tiekd_ros.student.preprocessing import normalise
from tiekd_ros.student.runtimes.torch_runtime import to_channels_last
from tiekd_ros.training.data import Batch, BatchPlan, TrainingSet, batches
from tiekd_ros.training.processes import Processes
from tiekd_ros.training.recipes import Recipe, TrainingPlan
from tiekd_ros.training.run_folder import RunFolder, Snapshots
from tiekd_ros.training.settings import HousekeepingSettings, OfflineSettings
from tiekd_ros.training.validation import EpochEvaluator

METRICS = "metrics.jsonl"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PICTURES = 2


class StopSignals:
    """Within the block the first SIGINT or SIGTERM is noted; a second one acts as usual."""

    def __init__(self) -> None:
        self.number = 0
        """The signal that came, 0 while none did."""
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}

    def __enter__(self) -> StopSignals:
        """Take over both signals."""
        for number in _SIGNALS:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        self._give_back()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def make_optimizer(network: nn.Module, train: OfflineSettings) -> AdamW:
    """Return the optimiser over all of a network's parameters, batch norms and biases too.

    Its learning rate is the schedule's peak; a `Stepper` sets that of each step.
    """
    return AdamW(
        network.parameters(),
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        weight_decay=train.weight_decay,
    )


def make_stepper(
    network: StudentNetwork,
    optimizer: torch.optim.Optimizer,
    plan: TrainingPlan,
    *,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    everywhere: Callable[[Tensor], bool] = bool,
) -> Stepper:
    """Return what does the steps of a training.

    Args:
        network: what is trained, in place.
        optimizer: of its parameters.
        plan: names the objective, and what a step is.
        wrap: makes of the network what is called with a batch, for several processes.
        everywhere: as of `Stepper`.

    Raises:
        InvalidSettingError: the objective does not suit the network.
    """
    objective = make_objective(network.bins, plan.loss, has_dpm=network.has_dpm)

    def loss(raw: Tensor, depth: Tensor) -> LossParts:
        return objective(network.output(raw), depth)

    return Stepper(
        wrap(network),
        optimizer,
        loss,
        clip_norm=plan.train.clip_norm,
        frozen=network if plan.train.batch_norm == "frozen" else None,
        everywhere=everywhere,
    )


class Curves:
    """Writes values by step; on continuing, what lies after the snapshot is dropped.

    Args:
        folder: the run's folder.
        step: the last step that counts, 0 at the start.

    Raises:
        TrainingError: the folder cannot be written to; also by all that write.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / METRICS
        try:
            kept = _lines_until(self._path, step)
            replace_durably(self._path, "".join(kept).encode())
            self._file = self._path.open("a")
        except OSError as error:
            raise TrainingError(f"cannot write {self._path}: {error.strerror}") from error
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def close(self) -> None:
        """Close the files."""
        with contextlib.suppress(OSError):  # a full disk was told already, or all is written
            self._board.close()
        with contextlib.suppress(OSError):
            self._file.close()

    def values(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Write values of a step; `kind` (train, validation) groups them."""
        with self._disk_errors_named():
            self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def pictures(self, step: int, name: str, picture: RgbImage) -> None:
        """Write a picture, uint8 RGB (H, W, 3)."""
        with self._disk_errors_named():
            self._board.add_image(name, picture, step, dataformats="HWC")

    def flush(self) -> None:
        """Let tensorboard see what was written."""
        with self._disk_errors_named():
            self._board.flush()

    @contextlib.contextmanager
    def _disk_errors_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"cannot write the curves to {self._path.parent}: {error.strerror}; make room, "
                "then continue with --resume"
            ) from error


def _lines_until(path: Path, step: int) -> list[str]:
    """Return the whole lines of a file up to a step; a killed writer may leave half a line."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept


def picture_row(images: npt.NDArray[np.uint8], teacher: DepthMap, student: DepthMap) -> RgbImage:
    """Return images beside teacher and student depth in one scale of colours.

    Args:
        images: RGB, (B, H, W, 3).
        teacher: metres, (B, H, W), NaN = unknown.
        student: metres, (B, H, W).

    Returns:
        One row of three pictures per image, (B * H, 3 * W, 3).
    """
    rows = []
    for image, wanted, given in zip(images, teacher, student, strict=True):
        known = np.concatenate([d[np.isfinite(d)] for d in (wanted, given)])
        low, high = np.percentile(known, (2, 98)) if known.size else (0.0, 1.0)
        high = max(high, low + 1e-3)
        pictures = [image, *(colour_depth(d, float(low), float(high)) for d in (wanted, given))]
        rows.append(np.concatenate(pictures, axis=1))
    row: RgbImage = np.concatenate(rows, axis=0)
    return row


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training is, told after every step."""

    step: int
    steps: int
    epoch: int  # from 1
    loss: float
    scores: dict[str, float]
    """Of the last validation, empty before it."""


@dataclass(frozen=True)
class TrainingJob:
    """What to train, on what, and how."""

    recipe: Recipe
    plan: TrainingPlan
    housekeeping: HousekeepingSettings
    folder: RunFolder
    samples: TrainingSet
    evaluator: EpochEvaluator


@dataclass(frozen=True)
class TrainingOutcome:
    """How a training ended; plain values."""

    step: int
    steps: int
    skipped: int
    stopped_by: int  # a signal's number; 0 = it came to its end
    scores: dict[str, float]  # of the best validation
    bad_items: dict[str, str]
    seconds: float


class OfflineTraining:
    """Trains one student, from the latest snapshot on where there is one.

    Args:
        job: what to do; the same in all processes.
        student: where the training starts.
        processes: this one and the others.
        report: receives progress.
        note: receives lines for people.

    Raises:
        TrainingError: too few samples, or no snapshot can be used.
        InvalidSettingError: the objective does not suit the network.
    """

    def __init__(
        self,
        job: TrainingJob,
        student: Student,
        processes: Processes,
        report: Callable[[TrainingProgress], None],
        note: Callable[[str], None],
    ) -> None:
        self._job = job
        self._processes = processes
        self._report = report
        self._note = note
        train = job.plan.train
        samples = len(job.samples.items)
        self._batches = BatchPlan(samples, train.batch_size, train.seed, processes.count)
        self.steps = train.iterations or train.epochs * self._batches.steps_per_epoch
        self._card = student.card
        self.network = student.network.to(processes.device)
        to_channels_last(self.network)
        if job.recipe.synchronises_norms(job.plan.student.architecture):
            processes.synchronise_norms(self.network)
        self._optimizer = make_optimizer(self.network, train)
        self._snapshots = Snapshots(job.folder.snapshots, job.housekeeping.keep_snapshots)
        self.state, problems = self._snapshots.load_latest(self.network, self._optimizer)
        for problem in problems:
            note(problem)
        self._bad = BadSteps(self.state.skipped, self.state.bad_in_a_row)
        self._stepper = make_stepper(
            self.network,
            self._optimizer,
            job.plan,
            wrap=processes.wrap,
            everywhere=processes.everywhere,
        )

    def run(self) -> TrainingOutcome:
        """Train to the end, or until SIGINT or SIGTERM asks to stop; a snapshot is written.

        Raises:
            TrainingError: several steps in a row are not finite, an item cannot be read, or the
                disk refuses. What the latest snapshot holds is not lost.
        """
        first = self._processes.is_first
        if first:
            self._snapshots.clean()
        curves = Curves(self._job.folder.root, self.state.step) if first else None
        try:
            with StopSignals() as stop:
                stopped_by = self._run(stop, curves)
        finally:
            if curves is not None:
                curves.close()
        state = self.state
        return TrainingOutcome(
            state.step,
            self.steps,
            state.skipped,
            stopped_by,
            state.best,
            state.bad_items,
            round(state.seconds, 2),
        )

    def _run(self, stop: StopSignals, curves: Curves | None) -> int:
        start = time.monotonic() - self.state.seconds
        saved_at = time.monotonic()
        workers = self._job.housekeeping.workers
        span = (self.state.step, self.steps)
        rank = self._processes.rank
        for batch in batches(self._job.samples, self._batches, span, rank, workers):
            step = self._do_step(batch, curves)
            self.state.seconds = time.monotonic() - start
            stopped = self._processes.anywhere(bool(stop.number))
            ended = self.state.step == self.steps
            due = self._is_validation_due()
            if ended or stopped or due:
                self._share_bad_items()
            if ended or due:
                self._validate(curves)
            if ended or stopped or self._is_snapshot_due(saved_at):
                self._save()
                saved_at = time.monotonic()
            self._report_progress(step, curves)
            if stopped and not ended:
                return stop.number or -1
        return 0

    def _do_step(self, batch: Batch, curves: Curves | None) -> Step | None:
        """Do one step and count it, also where it is skipped."""
        number = self.state.step
        rate = self._job.recipe.rate(number, self.steps, self._job.plan.train.learning_rate)
        images, depth = self._on_device(batch)
        with shared_batches():
            did = self._stepper.step(images, depth, rate)
        self.state.step += 1
        self.state.bad_items |= batch.bad
        if did is None:
            self._bad.bad(self.state.step)
        else:
            self._bad.good()
        self.state.skipped, self.state.bad_in_a_row = self._bad.total, self._bad.in_a_row
        every = self._job.housekeeping.picture_every
        if curves is not None and every and (number % every == 0):
            self._draw(images[:_PICTURES], depth[:_PICTURES], batch, curves)
        if self.state.step % self._job.housekeeping.log_every == 0 and did is not None:
            means = self._processes.mean(torch.stack((*did.parts, did.gradient_norm)))
            names = ("loss", "kl", "ssim", "gradient_norm")
            if curves is not None:
                values = dict(zip(names, means.tolist(), strict=True))
                curves.values(self.state.step, "train", {**values, "learning_rate": rate})
        return did

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return normalised images (B, 3, Hn, Wn) and depth (B, 1, Hn, Wn)."""
        images = batch.images.to(self._processes.device, non_blocking=True)
        depth = batch.depth.to(self._processes.device, non_blocking=True)
        # Either way they stay channels last in memory.
        ready = normalise(images) if images.dtype == torch.uint8 else images.permute(0, 3, 1, 2)
        return ready, depth

    def _is_validation_due(self) -> bool:
        epochs, rest = divmod(self.state.step, self._batches.steps_per_epoch)
        return rest == 0 and epochs % self._job.plan.train.validate_every == 0

    def _is_snapshot_due(self, saved_at: float) -> bool:
        keeping, step = self._job.housekeeping, self.state.step
        if step % self._batches.steps_per_epoch == 0:
            return True
        if keeping.snapshot_every and step % keeping.snapshot_every == 0:
            return True
        return 0 < keeping.snapshot_seconds <= time.monotonic() - saved_at

    def _save(self) -> None:
        if self._processes.is_first:
            self._snapshots.save(self.state, self.network, self._optimizer)

    def _share_bad_items(self) -> None:
        """Know of the items that any process could not read."""
        self.state.bad_items = dict(self._processes.gather(list(self.state.bad_items.items())))

    def _validate(self, curves: Curves | None) -> None:
        """Score the student as it is now and export it."""
        result = self._job.evaluator.evaluate(self.network, self._processes, self.state.best)
        self.state.scores = result.scores
        self.state.bad_items |= result.bad
        if result.is_best:
            self.state.best = result.scores
        if curves is None:
            return
        if result.scores:
            curves.values(self.state.step, "validation", result.scores)
        curves.flush()
        self._job.folder.export(
            self._job.evaluator.student(self._card, result, self.state, self.steps),
            self.state.step,
            best=result.is_best,
        )

    @torch.no_grad()
    def _draw(self, images: Tensor, depth: Tensor, batch: Batch, curves: Curves) -> None:
        """Write pictures of the first images of this step, as they were before it."""
        was_training = self.network.training
        self.network.eval()
        output = self.network.output(self.network(images))
        student = output.depth if output.fine_depth is None else output.fine_depth
        self.network.train(was_training)
        depth = cell_depth(depth, depth.shape[2] // student.shape[2])
        size = (student.shape[2], student.shape[3])
        shown = images - images.amin((2, 3), keepdim=True)
        shown = shown / shown.amax((2, 3), keepdim=True).clamp_min(1e-6) * 255
        small = torch.nn.functional.interpolate(shown, size, mode="area").to(torch.uint8)
        curves.pictures(
            self.state.step,
            "image, teacher, student",
            picture_row(
                small.permute(0, 2, 3, 1).cpu().numpy(),
                depth[:, 0].float().cpu().numpy(),
                student[:, 0].float().cpu().numpy(),
            ),
        )

    def _report_progress(self, step: Step | None, curves: Curves | None) -> None:
        if curves is None:
            return
        loss = float("nan") if step is None else step.parts.total.item()
        epoch = (self.state.step - 1) // self._batches.steps_per_epoch + 1
        self._report(TrainingProgress(self.state.step, self.steps, epoch, loss, self.state.scores))
