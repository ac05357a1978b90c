"""What companion_node says of itself on /diagnostics and of a round on distill/status."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticStatus

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.diagnosis.thresholds import DiagnosticSettings
from tiekd_ros.framelog import FrameStore, Labeller, Recorder
from tiekd_ros.nodes.common.reporting import ERROR, WARN, Report
from tiekd_ros.nodes.companion.parts import CompanionParts
from tiekd_ros.nodes.companion.teaching import TeacherDesk
from tiekd_ros.rounds.canary_monitor import StudentWatch
from tiekd_ros.rounds.round_log import (
    FAILED,
    REFUSED,
    ROLLED_BACK,
    WAITING,
    RoundRecord,
    WatchRecord,
)

_SEVERAL_REFUSALS = 3
"""Labels refused in a row that are more than a bad frame."""


def add_companion_report(
    report: Report, parts: CompanionParts, thresholds: DiagnosticSettings
) -> None:
    """Add what companion_node finds, with remedies, and its numbers."""
    _add_recorder(report, parts.recorder)
    _add_store(report, parts.store, thresholds)
    if parts.labeller is None or parts.desk is None:
        report.find(WARN, "no teacher is configured (teacher.url); frames are logged only")
    else:
        _add_labeller(report, parts.labeller)
        _add_desk(report, parts.desk, thresholds)
    record = parts.runner.record or parts.last_round
    if record is not None:
        _add_round(report, record)
    _add_watch(report, parts.watch)
    parts.latency.report(report)


def _add_round(report: Report, record: RoundRecord) -> None:
    report.add(
        {
            "round": record.number,
            "round state": record.state,
            "round stage": record.stage,
            "round resting": record.resting,
            "round result": record.reason,
        }
    )
    if record.state == FAILED:
        report.find(WARN, f"round {record.number} failed: {record.reason}")


def _add_watch(report: Report, watch: StudentWatch) -> None:
    """Add how the newest promotion stands, as long as no other follows."""
    record = watch.record
    if record is None:
        return
    found = record.watch
    if found is None:
        report.add({"watch": f"none: nothing is known that student {record.version} replaced"})
        return
    state = found.state
    if found.is_open and not watch.enabled:
        state = "off (watch.enabled)"
    elif state == WAITING:
        state = f"waiting: {watch.labels_since} of {watch.labels_needed} frames"
    report.add({"watch": state, "watched student": record.version, "watch result": found.reason})
    if found.state == ROLLED_BACK and watch.live in (found.predecessor, None):
        report.find(
            WARN,
            f"student {record.version} was rolled back to {found.predecessor} by the watch: "
            f"{found.reason}",
        )
    if watch.trouble and found.is_open:
        report.find(WARN, f"the watch over student {record.version} cannot go on: {watch.trouble}")
    if watch.distrusts_rounds:
        report.find(
            WARN,
            f"the last {watch.rolled_back_in_a_row} promotions were rolled back, so no round "
            "starts by its period: see that the teacher's labels are right, then call distill",
        )


def _add_recorder(report: Report, recorder: Recorder) -> None:
    log = recorder.snapshot()
    if not log.healthy:
        report.find(ERROR, f"frames cannot be logged: {log.last_error}")
    report.add(
        {
            "logging": "paused" if log.paused else "on",
            "frames offered": log.offered,
            "frames kept": log.kept,
            **{f"not kept: {reason}": count for reason, count in sorted(log.not_kept.items())},
        }
    )


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
            "frames stored": stats.total,
            "labelled for training": labelled.get("train", 0),
            "labelled held out": labelled.get("held_out", 0),
            "labels new since last round": stats.new_labels,
            "waiting for labels": backlog,
            **{f"rejected: {reason}": count for reason, count in sorted(stats.rejected.items())},
            "frame log fill": fill,
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
            "teacher link": state.link,
            "teacher retry in [s]": state.retry_in_s,
            "labels received": state.labelled,
            "labels refused": state.refused,
            **{f"refused: {reason}": n for reason, n in sorted(state.refusals.items())},
        }
    )


def _add_desk(report: Report, desk: TeacherDesk, thresholds: DiagnosticSettings) -> None:
    """Add who labels, over what connection, at what cost, and what labels are compared with."""
    settings = desk.client.settings
    circuit, _ = desk.client.breaker.state()
    traffic = desk.client.traffic.snapshot()
    trust = desk.judge.snapshot()
    obstacle = desk.client.obstacle()
    if obstacle:
        report.find(ERROR, f"frames are logged, but the teacher cannot be asked: {obstacle}")
    if trust.settled_lately:
        report.find(
            WARN,
            "labels of another scale than before, or than the student sees, are now taken for "
            "right, since they agree with each other (trust.settle); see that the teacher is",
        )
    teacher = trust.teacher
    if trust.changes and trust.compared < desk.judge.settings.min_history and teacher is not None:
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
            "teacher": "none yet" if teacher is None else f"{teacher.name} {teacher.version}",
            "teacher changes": trust.changes,
            "label scales settled": trust.settled,
            "teacher connection": "TLS" if settings.tls else "plain",
            "teacher circuit": circuit,
            "round trip p50 [ms]": 1e3 * traffic.round_trip_p50_s,
            "round trip p95 [ms]": p95_ms,
            "bytes up per frame": traffic.bytes_up,
            "bytes down per frame": traffic.bytes_down,
            "labels compared with": trust.compared,
            "label median [m]": trust.median_m,
            "label / student": trust.student_factor,
        }
    )


def round_status(record: RoundRecord) -> DiagnosticStatus:
    """Return a round's state for distill/status."""
    report = Report(f"round {record.number}", hardware_id="distillation")
    if record.state == FAILED:
        report.find(ERROR, record.reason)
    elif record.state == REFUSED:
        report.find(WARN, f"refused: {record.reason}")
    elif record.watch is not None and record.watch.state == ROLLED_BACK:
        report.find(WARN, f"rolled back by the watch: {record.watch.reason}")
    values: dict[str, object] = {
        "round": record.number,
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
        "resting": record.resting,
        "rested_seconds": record.rested_seconds,
    }
    values.update(_scores("", record.before, record.after))
    if (watch := record.watch) is not None:
        values.update(_watch_values(watch))
    report.add(values)
    stage = f"{record.stage}, resting" if record.resting else record.stage
    if watch is not None and watch.reason:
        return report.status(f"watch, {watch.state}: {watch.reason}")
    return report.status(record.reason or stage)


def _watch_values(watch: WatchRecord) -> dict[str, object]:
    return {
        "watch": watch.state,
        "watch.reason": watch.reason,
        "watch.predecessor": watch.predecessor,
        "watch.frames": watch.frames,
        **_scores("watch.", watch.before, watch.after),
    }


def _scores(prefix: str, before: dict[str, float], after: dict[str, float]) -> dict[str, object]:
    both = (("before", before), ("after", after))
    return {f"{prefix}{when}.{k}": f"{v:.6f}" for when, scores in both for k, v in scores.items()}
