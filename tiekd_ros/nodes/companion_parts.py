"""What companion_node is made of, opened and closed in the right order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rclpy.node import Node

from tiekd_ros.distillation.plan import RoundPlan
from tiekd_ros.distillation.round_log import RoundRecord
from tiekd_ros.distillation.rounds import RoundRunner
from tiekd_ros.frames import (
    FrameLogSettings,
    FrameStore,
    Labeller,
    LabellerSettings,
    Recorder,
)
from tiekd_ros.nodes.announcing import StudentAnnouncer
from tiekd_ros.nodes.latency_guard import LatencyWatch
from tiekd_ros.nodes.live_depth import LiveDepth
from tiekd_ros.nodes.teaching import TeacherDesk
from tiekd_ros.settings import SettingGroups
from tiekd_ros.state import StateFolder
from tiekd_ros.student import StudentRegistry
from tiekd_ros.teacher.checks import AnswerChecks
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.protocol import TeacherIdentity
from tiekd_ros.teacher.trust import LabelJudge, TrustSettings
from tiekd_ros.teacher.upload import UploadSettings


@dataclass(frozen=True)
class LearningSettings(SettingGroups):
    """Settings of what stands between the camera and a round, by group; read at start."""

    frames: FrameLogSettings = field(default_factory=FrameLogSettings)
    labels: LabellerSettings = field(default_factory=LabellerSettings)
    teacher: ClientSettings = field(default_factory=ClientSettings)
    upload: UploadSettings = field(default_factory=UploadSettings)
    checks: AnswerChecks = field(default_factory=AnswerChecks)
    trust: TrustSettings = field(default_factory=TrustSettings)


@dataclass
class CompanionParts:
    """What exists between configure and cleanup; desk and labeller only where there is a teacher.

    Use `open` to make them.
    """

    store: FrameStore
    recorder: Recorder
    desk: TeacherDesk | None
    labeller: Labeller | None
    runner: RoundRunner
    latency: LatencyWatch
    registry: StudentRegistry
    announcer: StudentAnnouncer

    @classmethod
    def open(
        cls,
        node: Node,
        folder: StateFolder,
        settings: LearningSettings,
        plan: Callable[[], RoundPlan],
        on_round: Callable[[RoundRecord], None],
    ) -> CompanionParts:
        """Open the frame log and start the threads.

        Args:
            node: the companion; publishes and listens.
            folder: where everything is kept.
            settings: of the parts.
            plan: returns that of the next round.
            on_round: called from a thread with each change of a round.

        Raises:
            TiekdError: the folder or the frame log cannot be used. A token or certificate that
                cannot be used is no obstacle: frames are logged, and it is read again.
        """
        folder.create()
        registry = StudentRegistry(folder.students)
        client = None
        if settings.teacher.url:
            client = TeacherClient(settings.teacher, settings.checks, require_credentials=False)
        store = FrameStore(folder.frames, settings.frames)
        desk, labeller = None, None
        if client is not None:
            try:
                desk = _make_desk(client, store, registry, settings)
            except BaseException:
                store.close()
                raise
            labeller = Labeller(store, desk, settings.labels)
            labeller.start()
        on_kept = (lambda frame_id: labeller.notify()) if labeller is not None else None
        recorder = Recorder(store, on_kept)
        recorder.start()
        runner = RoundRunner(folder, store, plan(), on_round)
        latency = LatencyWatch(node, lambda: plan().beside, runner)
        announcer = StudentAnnouncer(node, registry)
        announcer.check()
        return cls(store, recorder, desk, labeller, runner, latency, registry, announcer)

    def close(self) -> None:
        """Stop what runs. A round that is under way is taken up after the next start."""
        self.latency.close()
        self.runner.stop()
        self.recorder.stop()
        if self.desk is not None and self.labeller is not None:
            self.labeller.stop(timeout=0)  # ask no more, before the client is closed
            self.desk.client.close()
            self.labeller.stop()
        self.store.close()
        self.announcer.close()


def _make_desk(
    client: TeacherClient, store: FrameStore, registry: StudentRegistry, settings: LearningSettings
) -> TeacherDesk:
    judge = LabelJudge(settings.trust)
    for label in store.newest_labels(settings.trust.history):
        identity = TeacherIdentity(label.teacher_name, label.teacher_version, metric=True)
        judge.remember(identity, label.depth)
    return TeacherDesk(
        client,
        judge,
        upload=settings.upload,
        logged_quality=settings.frames.jpeg_quality,
        max_side=settings.labels.max_side,
        student=LiveDepth(registry) if settings.trust.needs_student else None,
    )
