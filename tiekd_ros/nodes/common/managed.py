"""Managed nodes: lifecycle, parameters, diagnostics once a second, starting by themselves.

A transition either succeeds, or leaves nothing behind and says why: in the log, and on
/diagnostics until the next one. Transitions, the tick and all callbacks run in the executor's one
thread; `publish_report` may also be called by a thread of the subclass.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.settings import Settings
from tiekd_ros.diagnosis import keys
from tiekd_ros.diagnosis.thresholds import DiagnosticSettings
from tiekd_ros.nodes.common.parameters import SettingsParameters
from tiekd_ros.nodes.common.reporting import ERROR, WARN, Report
from tiekd_ros.nodes.common.run import long_work
from tiekd_ros.nodes.common.settings import CommonSettings


def refuse_unfit_transitions(node: LifecycleNode) -> None:
    """Refuse a request for a transition that the node's state does not have.

    Up to Jazzy rclpy raises it in the executor, where it ends the program.
    """
    service = node._service_change_state
    change_state = service.callback

    def answer(request: Any, response: Any) -> Any:
        try:
            return change_state(request, response)
        except RuntimeError as error:  # rclpy's RCLError
            node.get_logger().error(f"refused: {str(error).splitlines()[0]}")
            response.success = False
            return response

    service.callback = answer


UNCONFIGURED, INACTIVE, ACTIVE, FINALIZED = "unconfigured", "inactive", "active", "finalized"
TRY_AGAIN_S = 10.0
"""How long a node that starts by itself waits after a failed start."""
_AT_ONCE_S = 1e-3
_SMALL_JUMP = Duration(nanoseconds=-1)
_NEXT = {
    UNCONFIGURED: "not configured; configure the node (ros2 lifecycle set {} configure)",
    INACTIVE: "not active; activate the node (ros2 lifecycle set {} activate)",
    FINALIZED: "shut down; start the node's program anew",
}


class ManagedNode(LifecycleNode):
    """A managed node that starts by itself if `autostart` is set, and reports once a second.

    A subclass says what the transitions do in `configure` and `activate`; what each made is
    freed again, in reverse order, by the stack that it got. Its parameters are declared when
    its `__init__` ends.

    Args:
        name: of the node; the diagnostics' value `kind` says it whatever the node is renamed to.
        settings: of the node itself.
        thresholds: of its diagnostics, the group `diagnostics`.
        options: as for `LifecycleNode`.
    """

    tick_s = 1.0
    """Seconds between two calls of `work` and two reports; shorter in tests."""

    def __init__(
        self,
        name: str,
        settings: type[CommonSettings],
        thresholds: type[DiagnosticSettings],
        **options: Any,
    ) -> None:
        super().__init__(name, **options)
        self._clock_jumps = 0
        threshold = JumpThreshold(min_forward=None, min_backward=_SMALL_JUMP, on_clock_change=True)
        self._jumps = self.get_clock().create_jump_callback(
            threshold, post_callback=self._on_clock_jump
        )
        refuse_unfit_transitions(self)
        self.kind = name
        self.phase = UNCONFIGURED
        """The state whose transition has succeeded."""
        self.parameters = SettingsParameters(self, self._take_settings)
        self.settings = self.parameters.declare("", settings)
        self.thresholds = self.parameters.declare("diagnostics", thresholds)
        self._configured_resources, self._active_resources = ExitStack(), ExitStack()
        self._obstacle = ""  # what the last transition failed for
        self._trouble = ""  # what the last tick failed for
        self._try_at: float | None = None  # when to start by itself again, monotonic
        self._is_starting = False
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Not the node's clock: with use_sim_time and no /clock it stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(self.tick_s, self._tick, clock=steady)
        self._starter = self.create_timer(_AT_ONCE_S, self.start, clock=steady)

    # For subclasses.

    def configure(self, held: ExitStack) -> None:
        """Make what the node holds between configure and cleanup, pushing each onto `held`."""
        raise NotImplementedError

    def activate(self, held: ExitStack) -> None:
        """Make what it holds while it is active, pushing each onto `held`."""
        raise NotImplementedError

    def report(self, report: Report) -> str:
        """Add findings and values while the node is configured; return the text if all is well."""
        raise NotImplementedError

    def work(self) -> None:
        """Do the periodic work of a configured node; called at each tick."""

    def take_settings(self, group: str, settings: Settings) -> None:
        """Use settings that changed while the node runs."""

    def forget_time(self) -> None:
        """Drop what was remembered by the node's clock, which has jumped."""

    # Starting and ending.

    def start(self) -> None:
        """Configure and activate the node if it starts by itself; called once it spins."""
        self._starter.cancel()
        self.parameters.without_effect()
        if self.settings.autostart and self.phase == UNCONFIGURED:
            self._start_by_itself()

    def release(self) -> None:
        """Free everything, whatever the state; safe to call twice."""
        for stack in (self._active_resources, self._configured_resources):
            self._free(stack)

    def _free(self, stack: ExitStack) -> None:
        try:
            stack.close()
        except Exception as error:  # what is left is freed all the same
            if self.context.ok():
                self.get_logger().error(f"not all was freed: {_reason(error)}")

    def destroy_node(self) -> None:
        """End the node."""
        self._jumps.unregister()
        super().destroy_node()

    def _start_by_itself(self) -> None:
        self._is_starting = True
        try:
            if self.phase == UNCONFIGURED:
                self.trigger_configure()
            if self.phase == INACTIVE:
                self.trigger_activate()
        finally:
            self._is_starting = False
        self._try_at = None if self.phase == ACTIVE else time.monotonic() + TRY_AGAIN_S

    # Transitions. rclpy swallows what is raised in them; here it is logged and reported.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and open what the node needs; where that fails, it stays unconfigured."""
        return self._attempt("configure", self.configure, self._configured_resources, INACTIVE)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and publish; where that fails, it stays inactive."""

        def activate(held: ExitStack) -> None:
            self.activate(held)
            _demand_success(super(ManagedNode, self).on_activate(state))

        return self._attempt("activate", activate, self._active_resources, ACTIVE)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End subscriptions and publishing."""
        self.phase = INACTIVE

        def stop(held: ExitStack) -> None:
            _demand_success(super(ManagedNode, self).on_deactivate(state))
            held.close()

        return self._run("deactivate", stop, self._active_resources, INACTIVE)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free what configure made."""
        return self._run("clean up", ExitStack.close, self._configured_resources, UNCONFIGURED)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, from any state."""
        self._try_at = None
        self.phase = FINALIZED
        self.release()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything after a transition that broke, so that the node can be configured."""
        self.phase = UNCONFIGURED
        self.release()
        return TransitionCallbackReturn.SUCCESS

    def _attempt(
        self, step: str, do: Callable[[ExitStack], None], stack: ExitStack, then: str
    ) -> TransitionCallbackReturn:
        result = self._run(step, do, stack, then)
        if result != TransitionCallbackReturn.SUCCESS:
            self._free(stack)
            return TransitionCallbackReturn.FAILURE
        return result

    def _run(
        self, step: str, do: Callable[[ExitStack], None], stack: ExitStack, then: str
    ) -> TransitionCallbackReturn:
        if not self._is_starting:  # a lifecycle manager leads the node now
            self._try_at = None
        try:
            with long_work(self):
                do(stack)
        except Exception as error:
            self._report_failure(step, error)
            return TransitionCallbackReturn.ERROR
        self._obstacle = ""
        self.phase = then
        return TransitionCallbackReturn.SUCCESS

    def _report_failure(self, step: str, error: Exception) -> None:
        text = f"cannot {step}: {_reason(error)}"
        if text != self._obstacle or not self._is_starting:  # trying again, it is logged once
            self.get_logger().error(text)
        if not isinstance(error, TiekdError):
            self.get_logger().debug(traceback.format_exc())
        self._obstacle = text

    # The tick.

    def _tick(self) -> None:
        self._trouble = ""
        for step in (self._maybe_start, self._maybe_work, self.publish_report):
            try:
                step()
            except Exception as error:  # nothing here may end the stream
                if self.context.ok():
                    self._note_trouble(error)

    def _maybe_start(self) -> None:
        if self._try_at is not None and time.monotonic() >= self._try_at:
            self._start_by_itself()

    def _maybe_work(self) -> None:
        if self.phase in (INACTIVE, ACTIVE):
            self.work()

    def _note_trouble(self, error: Exception) -> None:
        self._trouble = _reason(error)
        self.get_logger().error(self._trouble, throttle_duration_sec=10.0)
        self.get_logger().debug(traceback.format_exc())

    def publish_report(self) -> None:
        """Publish the node's diagnostics."""
        array = DiagnosticArray(status=[self._status()])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def _status(self) -> DiagnosticStatus:
        name = self.get_fully_qualified_name()
        report = Report(name, self.thresholds.hardware_id)
        report.add(
            {keys.KIND: self.kind, keys.STATE: self.phase, keys.CLOCK_JUMPS: self._clock_jumps}
        )
        if self._obstacle:
            report.find(ERROR, self._obstacle)
        elif self.phase != ACTIVE:
            report.find(WARN, _NEXT[self.phase].format(name))
        for text in self.parameters.without_effect():
            report.find(WARN, text)
        fine = ""
        if self.phase in (INACTIVE, ACTIVE):
            try:
                fine = self.report(report)
            except Exception as error:  # half a report is better than none
                self._note_trouble(error)
        if self._trouble:
            report.find(ERROR, self._trouble)
        report.check_memory(self.thresholds)
        return report.status(fine)

    def _take_settings(self, group: str, settings: Settings) -> None:
        if group == "diagnostics" and isinstance(settings, DiagnosticSettings):
            self.thresholds = settings
        elif group == "" and isinstance(settings, CommonSettings):
            self.settings = settings
        self.take_settings(group, settings)

    def _on_clock_jump(self, jump: object) -> None:
        self._clock_jumps += 1
        self.get_logger().warning("the clock jumped (a bag that starts again, or use_sim_time)")
        self.forget_time()


def _demand_success(result: TransitionCallbackReturn) -> None:
    if result != TransitionCallbackReturn.SUCCESS:
        raise RuntimeError("a publisher refused the transition")


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, TiekdError) else f"{type(error).__name__}: {error}"
