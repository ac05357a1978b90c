"""What companion_node says of itself on /diagnostics and of a round on distill/status."""

from __future__ import annotations

from collections.abc import Sequence

from diagnostic_msgs.msg import DiagnosticStatus

from tiekd_ros.distillation.round_log import FAILED, REFUSED, RoundRecord
from tiekd_ros.distillation.rounds import RoundRunner
from tiekd_ros.errors import TiekdError
from tiekd_ros.frames import FrameStore, Labeller, Recorder
from tiekd_ros.nodes.latency_guard import LatencyWatch
from tiekd_ros.nodes.reporting import ERROR, WARN, Report


def companion_report(
    name: str,
    store: FrameStore,
    recorder: Recorder,
    labeller: Labeller | None,
    runner: RoundRunner,
    latency: LatencyWatch,
    findings: Sequence[tuple[bytes, str]],
) -> DiagnosticStatus:
    """Return the node's diagnostics: findings with their remedies, then the numbers."""
    report = Report(name, hardware_id="companion")
    for level, text in findings:
        report.find(level, text)
    _add_recorder(report, recorder)
    _add_store(report, store)
    if labeller is None:
        report.find(WARN, "no teacher is configured (teacher.url); frames are logged only")
    else:
        _add_labeller(report, labeller)
    record = runner.record
    if record is not None:
        report.add(
            {
                "round": record.number,
                "round state": record.state,
                "round stage": record.stage,
                "round resting": record.resting,
            }
        )
        if record.state == FAILED:
            report.find(WARN, f"round {record.number} failed: {record.reason}")
    latency.report(report)
    return report.status("logging frames")


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


def _add_store(report: Report, store: FrameStore) -> None:
    try:
        stats = store.stats()
    except TiekdError as error:
        report.find(ERROR, str(error))
        return
    labelled = stats.frames.get("labelled", {})
    report.add(
        {
            "frames stored": stats.total,
            "labelled for training": labelled.get("train", 0),
            "labelled held out": labelled.get("held_out", 0),
            "labels new since last round": stats.new_labels,
            "waiting for labels": sum(stats.frames.get("logged", {}).values()),
            **{f"rejected: {reason}": count for reason, count in sorted(stats.rejected.items())},
            "frame log fill": stats.bytes / max(stats.max_bytes, 1),
        }
    )


def _add_labeller(report: Report, labeller: Labeller) -> None:
    state = labeller.snapshot()
    if state.link == "down":
        report.find(WARN, f"the teacher does not answer: {state.last_error}")
    report.add(
        {
            "teacher link": state.link,
            "labels received": state.labelled,
            "labels refused": state.refused,
        }
    )


def round_status(record: RoundRecord) -> DiagnosticStatus:
    """Return a round's state for distill/status."""
    report = Report(f"round {record.number}", hardware_id="distillation")
    if record.state == FAILED:
        report.find(ERROR, record.reason)
    elif record.state == REFUSED:
        report.find(WARN, f"refused: {record.reason}")
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
    for when, scores in (("before", record.before), ("after", record.after)):
        values.update({f"{when}.{name}": f"{value:.6f}" for name, value in scores.items()})
    report.add(values)
    stage = f"{record.stage}, resting" if record.resting else record.stage
    return report.status(record.reason or stage)
