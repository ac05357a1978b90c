"""`tiekd label`: a teacher's depth for every image of a data set, resumable at any moment."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import BadDepthError, BadImageError, InvalidSettingError, TiekdError
from tiekd_ros.core.images import RgbImage, decode_image, encode_png, resize_depth
from tiekd_ros.datasets import AUTO, DatasetError, LabelSource, ReadOptions, open_images
from tiekd_ros.datasets.items import TEACHER_FOLDER
from tiekd_ros.evaluation.frame_log_dataset import FRAMES, frame_log_file
from tiekd_ros.evaluation.label_maps import MapFolder
from tiekd_ros.framelog import FrameStore, LoggedFrame
from tiekd_ros.framelog.schema import UnknownFrameError
from tiekd_ros.framelog.settings import FrameLogSettings
from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.backends import BACKENDS, read_backend
from tiekd_ros.teacher.checks import AnswerChecks, check_answer
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import (
    BackendRefusal,
    RelativeTeacherError,
    TeacherAnswerError,
    TeacherFailedError,
    TeacherRefusedError,
    TeacherUnreachableError,
)
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, TeacherIdentity


@dataclass(frozen=True, eq=False)
class View:
    """What a teacher gets to see: uint8 RGB (H, W, 3), intrinsics in its pixels, stamp."""

    image: RgbImage
    intrinsics: Intrinsics | None
    stamp_ns: int
    frame_id: str = ""


class Teacher(Protocol):
    """Labels one view at a time; may be asked from several threads."""

    @property
    def identity(self) -> TeacherIdentity:
        """Who labels."""
        ...

    def label(self, view: View) -> DepthAnswer:
        """Return checked depth, metres, NaN = unknown.

        Raises:
            TeacherError: see `TeacherClient.infer`.
            BackendRefusal: the teacher will not label this image.
        """
        ...

    def close(self) -> None:
        """Give back what it holds; ends calls that are under way, where that can be done."""
        ...


class ServerTeacher:
    """A teacher server.

    Raises:
        TeacherUnreachableError: nobody answers at this address.
        RelativeTeacherError: its depth is not in metres.
    """

    def __init__(self, settings: ClientSettings, checks: AnswerChecks) -> None:
        """Connect, and learn who the teacher is."""
        self._client = TeacherClient(settings, checks)
        try:
            self.identity = self._client.identity()
        except BaseException:
            self._client.close()
            raise

    def label(self, view: View) -> DepthAnswer:
        """Ask the server; the picture travels without loss."""
        data = encode_png(view.image)
        return self._client.infer(DepthRequest(data, view.intrinsics, view.stamp_ns, view.frame_id))

    def close(self) -> None:
        """End all calls."""
        self._client.close()


class LocalTeacher:
    """A backend in this process.

    Raises:
        RelativeTeacherError: its depth is not in metres.
    """

    def __init__(self, backend: Backend, checks: AnswerChecks) -> None:
        """Use `backend`, and check its answers as those of a server."""
        if not backend.identity.metric:
            raise RelativeTeacherError(
                f"the teacher {backend.identity.name!r} does not give depth in metres; use a "
                "metric one"
            )
        self.identity = backend.identity
        self._backend = backend
        self._checks = checks

    def label(self, view: View) -> DepthAnswer:
        """Ask the backend."""
        request = DepthRequest(b"", view.intrinsics, view.stamp_ns, view.frame_id)
        answer = self._backend.infer(view.image, request)
        depth = np.where(answer.depth == 0, np.float32(np.nan), answer.depth).astype(np.float32)
        answer = DepthAnswer(depth, answer.confidence, self.identity)
        check_answer(answer, view.image.shape[1], view.image.shape[0], self._checks)
        return answer

    def close(self) -> None:
        """Nothing is held."""


_MOST_FAILURES = 3
"""A teacher that breaks on this many images in a row is broken, not the images."""
_FRAMES_AT_A_TIME = 32
_REFUSALS: dict[type[TiekdError], str] = {
    TeacherRefusedError: "teacher_refused",
    BackendRefusal: "teacher_refused",
    TeacherAnswerError: "answer_not_believed",
    BadDepthError: "bad_label",
}
"""What is wrong with an image that will never get a label, in the words of the frame log."""


class TeacherChangedError(TiekdError):
    """Another teacher took the place of the one whose labels are being made."""


@dataclass
class LabelReport:
    """What became of the images."""

    labelled: int = 0
    kept: int = 0
    """Images that had a whole label already."""
    failed: dict[str, str] = field(default_factory=dict)
    """Images without a label, by name, and why."""
    output: str = ""
    """The folder of the maps; empty where a frame log keeps the labels."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values by name, fit for JSON."""
        return {"labelled": self.labelled, "kept": self.kept, "failed": self.failed}


@dataclass(frozen=True)
class _Job:
    """One image: `load` gives its view, or None where it has a label; `save` keeps one."""

    name: str
    load: Callable[[], View | None]
    save: Callable[[View, DepthAnswer], None]
    refuse: Callable[[str], None] = lambda reason: None


class Labelling:
    """One run: asks a teacher for several images at a time and keeps count.

    Args:
        teacher: who labels; it is closed when the run ends early.
        in_flight: images under way at the same time.
        skip_bad: count images that cannot be read as failed, instead of ending.
        advance: called after each image.
    """

    def __init__(
        self,
        teacher: Teacher,
        in_flight: int = 2,
        *,
        skip_bad: bool = False,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is asked yet."""
        self.report = LabelReport()
        self._teacher = teacher
        self._in_flight = in_flight
        self._skip_bad = skip_bad
        self._advance = advance
        self._broken = 0  # images in a row that the teacher broke on

    def label_images(self, source: LabelSource, folder: MapFolder, rate_hz: float = 30.0) -> None:
        """Label the images of a data set into a folder, which must be this run's.

        Args:
            source: the images.
            folder: claimed for this teacher; images with a whole map in it are passed over.
            rate_hz: makes stamps for images that have none.

        Raises:
            TeacherUnreachableError: the teacher is away; what is labelled stays.
            DatasetError: an image cannot be read, and `skip_bad` is off.
            TiekdError: the disk refuses, or another teacher answers.
        """
        self.report.failed.update(source.report.bad)
        self._run(_image_jobs(source, folder, source.stamps_ns(rate_hz)))

    def label_frames(self, store: FrameStore) -> None:
        """Label the frames of a frame log that wait for it; refused ones are marked rejected.

        Raises:
            TiekdError: as `label_images`, or the frame log is at fault.
        """
        failed: set[int] = set()
        while frames := store.unlabelled(_FRAMES_AT_A_TIME, skip=failed):
            self._run(_frame_job(store, frame) for frame in frames)
            failed |= {frame.id for frame in frames if str(frame.id) in self.report.failed}

    def _run(self, jobs: Iterable[_Job]) -> None:
        pool = ThreadPoolExecutor(self._in_flight, thread_name_prefix="label")
        waiting: dict[Future[bool], _Job] = {}
        left = iter(jobs)
        try:
            while True:
                for job in itertools.islice(left, 2 * self._in_flight - len(waiting)):
                    waiting[pool.submit(self._label, job)] = job
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    self._count(waiting.pop(future), future)
        except BaseException:
            self._teacher.close()  # answers under way are not waited for
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _label(self, job: _Job) -> bool:
        """Label one image in a thread of the pool; return whether it had no label before."""
        view = job.load()
        if view is None:
            return False
        answer = self._teacher.label(view)
        known, found = self._teacher.identity, answer.teacher or self._teacher.identity
        if (found.name, found.version) != (known.name, known.version):
            raise TeacherChangedError(
                f"the teacher is now {found.name} {found.version}, it was {known.name} "
                f"{known.version}: labels of two teachers are not mixed; start anew with --output "
                "or --overwrite"
            )
        job.save(view, answer)
        return True

    def _count(self, job: _Job, future: Future[bool]) -> None:
        try:
            if future.result():
                self.report.labelled += 1
                self._broken = 0
            else:
                self.report.kept += 1
        except tuple(_REFUSALS) as error:
            self._broken = 0
            doubted = error.reason if isinstance(error, TeacherAnswerError) else ""
            job.refuse(doubted or _REFUSALS[type(error)])
            self.report.failed[job.name] = str(error)
        except TeacherFailedError as error:
            self._broken += 1
            if self._broken >= _MOST_FAILURES:
                raise self._ended(error) from error
            self.report.failed[job.name] = str(error)
        except TeacherUnreachableError as error:
            raise self._ended(error) from error
        except DatasetError as error:
            if not self._skip_bad:
                raise
            self.report.failed[job.name] = str(error)
        self._advance()

    def _ended(self, error: TeacherUnreachableError) -> TeacherUnreachableError:
        report = self.report
        return TeacherUnreachableError(
            f"{error} {report.labelled} images were labelled in this run, {report.kept} before; "
            "nothing is lost: run the same command again to go on"
        )


def _image_jobs(source: LabelSource, folder: MapFolder, stamps: list[int]) -> Iterator[_Job]:
    def job(index: int) -> _Job:
        name = source.teacher_file(index)

        def load() -> View | None:
            return None if folder.has(name) else View(*source.view(index), stamps[index])

        def save(view: View, answer: DepthAnswer) -> None:
            depth = answer.depth
            if folder.map_format.at_image_size:
                depth = resize_depth(depth, view.image.shape[0], view.image.shape[1])
            folder.put(name, depth)

        return _Job(source.names[index], load, save)

    return (job(index) for index in range(len(source)))


def _frame_job(store: FrameStore, frame: LoggedFrame) -> _Job:
    def load() -> View:
        try:
            image = decode_image(frame.jpeg)
        except BadImageError as error:
            raise DatasetError(f"frame {frame.id} in {store.path} is damaged: {error}") from error
        return View(image, frame.intrinsics, frame.stamp_ns, frame.frame_id)

    def save(view: View, answer: DepthAnswer) -> None:
        assert answer.teacher is not None
        teacher = answer.teacher
        label = (answer.depth, teacher.name, teacher.version, answer.confidence)
        with contextlib.suppress(UnknownFrameError):  # evicted meanwhile
            store.put_label(frame.id, *label)

    def refuse(reason: str) -> None:
        with contextlib.suppress(UnknownFrameError):
            store.reject(frame.id, reason)

    return _Job(str(frame.id), load, save, refuse)


def maps_of(source: LabelSource, output: Path) -> tuple[MapFolder, list[str]]:
    """Return the folder that a source's maps go into, and the names of all of them."""
    files = [source.teacher_file(index) for index in range(len(source))]
    return MapFolder(output, source.map_format), files


Track = Callable[[int], Callable[[], None]]
"""Takes the number of images and returns what to call after each."""

_LARGEST_LOG_MB = 10_000_000


@dataclass(frozen=True)
class TeacherOptions:
    """Which teacher, and how it is asked."""

    url: str = ""
    backend: str = ""
    frames: str = ""
    seed: int = 0
    period_s: float = 60.0
    min_known_share: float = 0.05
    in_flight: int = 2
    ca: str = ""
    cert: str = ""
    key: str = ""
    token_file: str = ""
    tls: bool = False


@dataclass(frozen=True)
class LabelOptions:
    """The options of `tiekd label`."""

    data: Path
    kind: str = AUTO
    split: Path | None = None
    teacher: TeacherOptions = TeacherOptions()
    output: Path | None = None
    rate_hz: float = 30.0
    overwrite: bool = False
    skip_bad: bool = False


def open_teacher(options: TeacherOptions) -> Teacher:
    """Return the teacher that the options name.

    Raises:
        InvalidSettingError: they name none, or two.
        TiekdError: it cannot be reached or started, or is not metric.
    """
    if bool(options.url) == bool(options.backend):
        raise InvalidSettingError(
            "give one teacher: a server (--teacher HOST:PORT) or, in this process, a backend "
            f"(--backend {'|'.join(BACKENDS)})"
        )
    checks = AnswerChecks(min_known_share=options.min_known_share)
    if options.url:
        return ServerTeacher(_client_settings(options), checks)
    plain = TeacherOptions()
    given = {
        name: getattr(options, name)
        for name in ("frames", "seed", "period_s")
        if getattr(options, name) != getattr(plain, name)
    }
    return LocalTeacher(read_backend(options.backend, given).build(), checks)


def _client_settings(options: TeacherOptions) -> ClientSettings:
    return ClientSettings(
        url=options.url,
        in_flight=options.in_flight,
        tls=options.tls or bool(options.ca or options.cert or options.key),
        ca=options.ca,
        cert=options.cert,
        key=options.key,
        token_file=options.token_file,
    )


def label_data(options: LabelOptions, track: Track) -> LabelReport:
    """Label a data set or a frame log.

    Raises:
        TiekdError: data, teacher or output folder cannot be used; what is labelled stays.
    """
    log = frame_log_file(options.data) if options.kind in (AUTO, FRAMES) else None
    if log is not None or options.kind == FRAMES:
        return _label_frames(options, log, track)
    # The training images, where no split is given: a student learns from the maps.
    wanted = ReadOptions(
        split=options.split, subset="train", truth=False, skip_bad=options.skip_bad
    )
    source = open_images(options.kind, options.data, wanted)
    folder, files = maps_of(source, options.output or options.data / TEACHER_FOLDER)
    with contextlib.closing(open_teacher(options.teacher)) as teacher, folder.exclusive():
        folder.claim(teacher.identity, files, overwrite=options.overwrite)
        labelling = _labelling(options, teacher, track(len(source)))
        labelling.report.output = str(folder.path)
        labelling.label_images(source, folder, options.rate_hz)
    return labelling.report


def _label_frames(options: LabelOptions, log: Path | None, track: Track) -> LabelReport:
    if log is None:
        raise TiekdError(f"there is no frame log in {options.data}; give a state folder")
    if options.split is not None:
        raise InvalidSettingError("a frame log has no split files: leave out --split")
    if options.output is not None or options.overwrite:
        raise InvalidSettingError(
            "a frame log keeps its labels itself, and good ones stay: leave out --output and "
            "--overwrite"
        )
    # The limit is its companion's to set: what was logged under a larger one must stay here.
    endless = FrameLogSettings(max_bytes_mb=_LARGEST_LOG_MB)
    with (
        contextlib.closing(open_teacher(options.teacher)) as teacher,
        FrameStore(log, endless) as store,
    ):
        waiting = sum(store.stats().frames.get("logged", {}).values())
        labelling = _labelling(options, teacher, track(waiting))
        labelling.label_frames(store)
    return labelling.report


def _labelling(options: LabelOptions, teacher: Teacher, advance: Callable[[], None]) -> Labelling:
    in_flight = options.teacher.in_flight
    return Labelling(teacher, in_flight, skip_bad=options.skip_bad, advance=advance)
