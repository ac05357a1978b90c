"""The desk and frames that show what the camera did not see: labels are judged by the rest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from helpers.stores import view
from helpers.teachers import StubBackend, ramp, serving
from tiekd_ros.core.images import encode_jpeg, encode_mask_png
from tiekd_ros.framelog import LoggedFrame, RefusedLabel
from tiekd_ros.nodes.companion.teaching import TeacherDesk
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.trust import LabelJudge, TrustSettings

WIDTH, HEIGHT = 160, 120  # of `view`
LABEL = ramp(WIDTH, HEIGHT)
BLIND = np.zeros((HEIGHT, WIDTH), bool)
BLIND[40:] = True
DREAMT = np.where(BLIND, LABEL * np.float32(10), LABEL)
"""A label that is right where the camera saw something, and far off elsewhere."""


def frame(number: int, invalid_mask_png: bytes | None = None) -> LoggedFrame:
    jpeg = encode_jpeg(view(number))
    return LoggedFrame(number, number, "camera", jpeg, WIDTH, HEIGHT, None, invalid_mask_png)


@pytest.fixture
def backend() -> StubBackend:
    return StubBackend(LABEL)


@pytest.fixture
def desk(backend: StubBackend) -> Iterator[TeacherDesk]:
    """A desk that knows by two labels what is usual."""
    judge = LabelJudge(TrustSettings(history=10, min_history=2, settle=0))
    with serving(backend) as url, TeacherClient(ClientSettings(url=url, attempts=1)) as client:
        made = TeacherDesk(client, judge)
        for number in (1, 2):
            made(frame(number))
        yield made


def test_what_the_teacher_dreams_up_is_neither_kept_nor_held_against_it(backend, desk):
    backend.answer = DREAMT
    with pytest.raises(RefusedLabel) as refusal:
        desk(frame(3))
    assert refusal.value.reason == "label_scale_jump"
    label = desk(frame(4, encode_mask_png(BLIND)))
    assert (np.isnan(label.depth) == (BLIND | np.isnan(LABEL))).all()


def test_a_label_of_what_was_not_seen_alone_is_none(backend, desk):
    backend.answer = np.where(BLIND, LABEL, np.float32(np.nan))
    with pytest.raises(RefusedLabel) as refusal:
        desk(frame(3, encode_mask_png(BLIND)))
    assert refusal.value.reason == "label_unknown"


def test_a_damaged_mask_costs_its_frame(desk):
    with pytest.raises(RefusedLabel) as refusal:
        desk(frame(3, b"no mask"))
    assert refusal.value.reason == "image_unreadable"
