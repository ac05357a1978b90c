"""The diagnostics of companion_node, and the status of a round."""

from __future__ import annotations

from collections.abc import Mapping

from diagnostic_msgs.msg import DiagnosticStatus

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.diagnosis import keys
from tiekd_ros.diagnosis.thresholds import DiagnosticSettings
from tiekd_ros.framelog import FrameStore, Labeller, Recorder
from tiekd_ros.nodes.common.reporting import ERROR, WARN, Report
from tiekd_ros.nodes.companion.resources import CompanionResources
from tiekd_ros.rounds.canary_monitor import CanaryMonitor
from tiekd_ros.rounds.drift import DriftDetector
from tiekd_ros.rounds.round_log import CanaryState, RoundKind, RoundRecord, RoundState
from tiekd_ros.teacher.client import TeacherClient
from tiekd_ros.teacher.trust import LabelJudge

_SEVERAL_REFUSALS = 3
"""Labels refused in a row that are more than a bad frame."""


def add_companion_report(
    report: Report, resources: CompanionResources, thresholds: DiagnosticSettings
) -> None:
    """Add what companion_node finds, with remedies, and its numbers."""
    _add_recorder(report, resources.recorder)
    _add_store(report, resources.store, thresholds)
    if resources.labeller is None or resources.client is None or resources.judge is None:
        report.find(WARN, "no teacher is configured (teacher.url); frames are logged only")
    else:
        _add_labeller(report, resources.labeller)
        _add_teacher(report, resources.client, resources.judge, thresholds)
        _add_drift(report, resources.drift, resources.canary.live)
    record = resources.runner.record or resources.last_round
    if record is not None:
        _add_round(report, record, has_student=resources.canary.live is not None)
    _add_canary(report, resources.canary)
    resources.latency.report(report)


def _add_drift(report: Report, drift: DriftDetector, live: str | None) -> None:
    report.add({keys.LABEL_DISAGREEMENT: drift.disagreement})
    if (found := drift.found(live)) is not None:
        report.find(WARN, f"{found}: call distill, or have rounds start so (distill.drift)")


def _add_round(report: Report, record: RoundRecord, *, has_student: bool) -> None:
    report.add(
        {
            keys.ROUND: record.number,
            keys.ROUND_TRIGGER: record.trigger,
            keys.ROUND_STATE: record.state,
            keys.ROUND_STAGE: record.stage,
            keys.ROUND_PAUSED: record.paused,
            keys.ROUND_RESULT: record.reason,
        }
    )
    if record.state is RoundState.FAILED:
        report.find(WARN, f"round {record.number} failed: {record.reason}")
    refused = record.state is RoundState.REFUSED
    if refused and record.kind is RoundKind.CALIBRATION and not has_student:
        report.find(
            WARN,
            f"no depth yet: the base student was refused ({record.reason}); it is tried again with "
            f"{2 * record.labels} labels, or call the distill service",
        )


def _add_canary(report: Report, canary: CanaryMonitor) -> None:
    """Add how the newest promotion stands, as long as no other follows."""
    record = canary.record
    if record is None:
        return
    found = record.canary
    if found is None:
        report.add({keys.CANARY: f"none: nothing is known that student {record.version} replaced"})
        return
    state = str(found.state)
    if found.is_open and not canary.enabled:
        state = "off (canary.enabled)"
    elif found.state is CanaryState.WAITING:
        state = f"waiting: {canary.labels_since} of {canary.labels_needed} frames"
    report.add(
        {keys.CANARY: state, keys.CANARY_STUDENT: record.version, keys.CANARY_RESULT: found.reason}
    )
    if found.state is CanaryState.ROLLED_BACK and canary.live in (found.predecessor, None):
        report.find(
            WARN,
            f"student {record.version} was rolled back to {found.predecessor} by the canary "
            f"evaluation: {found.reason}",
        )
    if canary.trouble and found.is_open:
        report.find(WARN, f"canary of student {record.version}: {canary.trouble}")
    if canary.distrusts_rounds:
        report.find(
            WARN,
            f"the last {canary.rolled_back_in_a_row} promotions were rolled back, so no round "
            "starts by its period: see that the teacher's labels are right, then call distill",
        )


def _add_recorder(report: Report, recorder: Recorder) -> None:
    log = recorder.snapshot()
    if not log.healthy:
        report.find(ERROR, f"frames cannot be logged: {log.last_error}")
    report.add(
        {
            keys.LOGGING: "paused" if log.paused else "on",
            keys.FRAMES_OFFERED: log.offered,
            keys.FRAMES_KEPT: log.kept,
            **_by_reason(keys.FRAMES_NOT_KEPT, log.not_kept),
        }
    )


def _by_reason(key: str, counts: Mapping[str, int]) -> dict[str, object]:
    return {key.format(reason): count for reason, count in sorted(counts.items())}


def _add_store(report: Report, store: FrameStore, thresholds: DiagnosticSettings) -> None:
    try:
        stats = store.stats()
    except TiekdError as error:
        report.find(ERROR, str(error))
        return
    labelled = stats.frames.get("labelled", {})
    backlog = sum(stats.frames.get("logged", {}).values())
    fill = stats.bytes / max(stats.max_bytes, 1)
    report.add(
        {
            keys.FRAMES_STORED: stats.total,
            keys.LABELLED_TRAIN: labelled.get("train", 0),
            keys.LABELLED_HELD_OUT: labelled.get("held_out", 0),
            keys.LABELS_NEW: stats.new_labels,
            keys.LABEL_BACKLOG: backlog,
            **_by_reason(keys.FRAMES_REJECTED, stats.rejected),
            keys.FRAME_LOG_FILL: fill,
        }
    )
    remedy = "see the teacher link, or log fewer frames (frames.min_interval_s)"
    limit = thresholds.limit("label_backlog")
    report.hold(limit, backlog, f"{backlog} frames wait for a label", remedy)
    limit = thresholds.limit("frame_log_fill")
    report.hold(limit, fill, f"the frame log is {fill:.0%} full", "raise frames.max_bytes_mb")


def _add_labeller(report: Report, labeller: Labeller) -> None:
    state = labeller.snapshot()
    if state.link == "down" and state.suspect:
        report.find(WARN, state.last_error)
    elif state.link == "down":
        report.find(WARN, f"the teacher does not answer: {state.last_error}")
    if state.refused_in_a_row >= _SEVERAL_REFUSALS and not state.suspect:
        report.find(
            WARN,
            f"the last {state.refused_in_a_row} labels were refused (last: {state.last_refusal})",
        )
    report.add(
        {
            keys.TEACHER_LINK: state.link,
            keys.TEACHER_RETRY: state.retry_in_s,
            keys.LABELS_RECEIVED: state.labelled,
            keys.LABELS_REFUSED: state.refused,
            **_by_reason(keys.LABELS_REFUSED_FOR, state.refusals),
        }
    )


def _add_teacher(
    report: Report, client: TeacherClient, judge: LabelJudge, thresholds: DiagnosticSettings
) -> None:
    """Add who labels, over what connection, at what cost, and what labels are compared with."""
    settings = client.settings
    traffic = client.traffic.snapshot()
    trust = judge.snapshot()
    obstacle = client.obstacle()
    if obstacle:
        report.find(ERROR, f"frames are logged, but the teacher cannot be asked: {obstacle}")
    if trust.settled_lately:
        report.find(
            WARN,
            "labels of another scale than before, or than the student sees, are now taken for "
            "right, since they agree with each other (trust.settle); see that the teacher is",
        )
    teacher = trust.teacher
    if trust.changes and trust.compared < judge.settings.min_history and teacher is not None:
        report.find(
            WARN,
            f"the teacher changed: {teacher.name} {teacher.version} labels now, and the frame log "
            "holds labels of both (teacher.pin keeps to one)",
        )
    p95_ms = 1e3 * traffic.round_trip_p95_s
    remedy = "see the teacher's load and the network, or lower upload.max_side"
    report.hold(
        thresholds.limit("round_trip_p95_ms"), p95_ms, f"a label takes {p95_ms:.0f} ms", remedy
    )
    report.add(
        {
            keys.TEACHER: "none yet" if teacher is None else f"{teacher.name} {teacher.version}",
            keys.TEACHER_CHANGES: trust.changes,
            keys.LABEL_SCALES_SETTLED: trust.settled,
            keys.TEACHER_CONNECTION: "TLS" if settings.tls else "plain",
            keys.ROUND_TRIP_P50: 1e3 * traffic.round_trip_p50_s,
            keys.ROUND_TRIP_P95: p95_ms,
            keys.BYTES_UP: traffic.bytes_up,
            keys.BYTES_DOWN: traffic.bytes_down,
            keys.LABELS_COMPARED: trust.compared,
            keys.LABEL_MEDIAN: trust.median_m,
            keys.LABEL_TO_STUDENT: trust.student_factor,
        }
    )


def round_status(record: RoundRecord) -> DiagnosticStatus:
    """Return a round's state for distill/status."""
    report = Report(f"round {record.number}", hardware_id="distillation")
    if record.state is RoundState.FAILED:
        report.find(ERROR, record.reason)
    elif record.state is RoundState.REFUSED:
        report.find(WARN, f"refused: {record.reason}")
    elif record.canary is not None and record.canary.state is CanaryState.ROLLED_BACK:
        report.find(WARN, f"rolled back by the canary evaluation: {record.canary.reason}")
    values: dict[str, object] = {
        "round": record.number,
        "trigger": record.trigger,
        "kind": record.kind,
        "state": record.state,
        "stage": record.stage,
        "step": record.step,
        "steps": record.steps,
        "loss": "" if record.loss is None else f"{record.loss:.4f}",
        "version": record.version or "",
        "reason": record.reason,
        "baseline": record.baseline,
        "train_frames": record.train_frames,
        "held_out_frames": record.held_out_frames,
        "train_seconds": record.train_seconds,
        "seconds": record.seconds,
        "paused": record.paused,
        "paused_seconds": record.paused_seconds,
    }
    values |= _scores("", record.before, record.after)
    if (canary := record.canary) is not None:
        values |= {
            "canary": canary.state,
            "canary.reason": canary.reason,
            "canary.predecessor": canary.predecessor,
            "canary.frames": canary.frames,
            **_scores("canary.", canary.before, canary.after),
        }
    report.add(values)
    stage = f"{record.stage}, paused" if record.paused else record.stage
    if canary is not None and canary.reason:
        return report.status(f"canary, {canary.state}: {canary.reason}")
    return report.status(record.reason or stage)


def _scores(prefix: str, before: dict[str, float], after: dict[str, float]) -> dict[str, object]:
    both = (("before", before), ("after", after))
    return {f"{prefix}{when}.{k}": f"{v:.6f}" for when, scores in both for k, v in scores.items()}
