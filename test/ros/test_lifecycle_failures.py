"""A managed node that breaks in a transition, in its work, or whose GPU does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition

from ros_helpers.peer import INACTIVE, UNCONFIGURED, Peer, running
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.diagnosis.thresholds import DiagnosticSettings
from tiekd_ros.nodes.common.managed import ManagedNode
from tiekd_ros.nodes.common.reporting import Report
from tiekd_ros.nodes.common.settings import CommonSettings

CONFIGURE, CLEANUP = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE


class Fragile(ManagedNode):
    """Breaks where it is told to."""

    def __init__(self, **options: object) -> None:
        super().__init__("fragile", CommonSettings, DiagnosticSettings, **options)
        self.breaks: dict[str, Exception] = {}
        self.freed: list[str] = []

    def _maybe(self, step: str) -> None:
        if step in self.breaks:
            raise self.breaks[step]
        self.freed.append(step)

    def configure(self, held: ExitStack) -> None:
        held.callback(self._maybe, "clean up")
        if "configure" in self.breaks:
            raise self.breaks["configure"]

    def activate(self, held: ExitStack) -> None:
        held.callback(self._maybe, "deactivate")
        if "activate" in self.breaks:
            raise self.breaks["activate"]

    def work(self) -> None:
        if "work" in self.breaks:
            raise self.breaks["work"]

    def report(self, report: Report) -> str:
        return "whole"


class TestBreakingNode:
    @pytest.fixture
    def fragile(self, peer: Peer) -> Iterator[Fragile]:
        with running(Fragile, peer, until=UNCONFIGURED) as node:
            assert isinstance(node, Fragile)
            yield node

    @pytest.mark.parametrize(
        ("error", "told"),
        [(TiekdError("no film; load one"), "no film; load one"), (KeyError("a"), "KeyError: 'a'")],
    )
    def test_where_activating_breaks_it_stays_inactive_and_can_be_activated_later(
        self, peer: Peer, fragile: Fragile, error: Exception, told: str
    ) -> None:
        assert peer.change_state("fragile", CONFIGURE)
        fragile.breaks = {"activate": error}
        assert not peer.change_state("fragile", ACTIVATE)
        assert peer.state_of("fragile") == INACTIVE
        assert fragile.freed == ["deactivate"]
        peer.await_diagnosis("fragile", f"cannot activate: {told}", DiagnosticStatus.ERROR)
        fragile.breaks = {}
        assert peer.change_state("fragile", ACTIVATE)
        peer.await_diagnosis("fragile", "whole", DiagnosticStatus.OK)

    @pytest.mark.parametrize("step", ["deactivate", "clean up"])
    def test_where_freeing_breaks_the_rest_is_freed_and_the_node_can_be_configured_again(
        self, peer: Peer, fragile: Fragile, step: str
    ) -> None:
        assert peer.change_state("fragile", CONFIGURE)
        assert peer.change_state("fragile", ACTIVATE)
        fragile.breaks = {step: OSError("stuck")}
        results = [peer.change_state("fragile", t) for t in (DEACTIVATE, CLEANUP)]
        assert not all(results)
        assert peer.state_of("fragile") == UNCONFIGURED
        assert len(fragile.freed) == 1
        peer.await_diagnosis("fragile", "cannot", DiagnosticStatus.ERROR)
        fragile.breaks = {}
        assert peer.change_state("fragile", CONFIGURE)
        assert peer.change_state("fragile", ACTIVATE)

    def test_a_report_that_breaks_does_not_end_the_node(self, peer: Peer, fragile: Fragile) -> None:
        assert peer.change_state("fragile", CONFIGURE)
        fragile.breaks = {"work": KeyError("a")}
        assert peer.change_state("fragile", ACTIVATE)
        peer.await_diagnosis("fragile", "KeyError: 'a'", DiagnosticStatus.ERROR)
        fragile.breaks = {}
        peer.await_diagnosis("fragile", "whole", DiagnosticStatus.OK)

    def test_a_gpu_that_does_not_answer_is_told_and_silences_nothing_else(
        self, peer: Peer, fragile: Fragile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(device: int) -> int:
            raise RuntimeError("CUDA error: device-side assert triggered\nmore lines")

        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "memory_reserved", broken)
        said = peer.await_diagnosis("fragile", "the GPU does not answer", DiagnosticStatus.ERROR)
        assert "(CUDA error: device-side assert triggered)" in said.message
        assert "not configured; configure the node" in said.message
        assert float(said.values["memory [MB]"]) > 20
