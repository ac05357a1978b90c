"""Several teachers as one: the median of their depths, their disagreement as confidence."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import DepthMap, RgbImage, resize_depth
from tiekd_ros.core.settings import setting
from tiekd_ros.teacher.backend import (
    Backend,
    BackendSettings,
    check_request,
    infer_all,
    refuse_unused,
)
from tiekd_ros.teacher.backends import read_backend, settings_of
from tiekd_ros.teacher.backends.network import BatchedBackend, fingerprint
from tiekd_ros.teacher.errors import BackendError
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, TeacherIdentity

DISAGREEMENT = 0.1
"""Mean relative deviation from the median at which confidence has fallen to 1/e."""


@dataclass(frozen=True)
class EnsembleSettings(BackendSettings):
    """The members of an ensemble, and options that they share."""

    ARGUMENT = "members"

    members: str = setting(
        "",
        "its members as KIND:ARGUMENT, separated by commas, for example "
        "huggingface:ORG/NAME,onnx:FILE",
    )
    options: tuple[tuple[str, Any], ...] = setting(
        (), "names and values of options; a member gets those that its kind has"
    )

    @classmethod
    def from_options(cls, kind: str, options: Mapping[str, Any]) -> BackendSettings:
        """Keep the options of members for them; errors as `BackendSettings.from_options`."""
        others = {name: value for name, value in options.items() if name != "members"}
        ensemble = cls(options.get("members", ""), tuple(others.items()))
        used = {name for member in ensemble.member_settings() for name in _shared(type(member))}
        refuse_unused(kind, [name for name in others if name not in used])
        return ensemble

    def check(self) -> None:
        """Check that there are two members at least, and that each can be one."""
        self.member_settings()

    def member_settings(self) -> list[BackendSettings]:
        """Return the settings of each member.

        Raises:
            InvalidSettingError: there are fewer than two, or one is unknown or an ensemble.
        """
        texts = [text.strip() for text in self.members.split(",") if text.strip()]
        if len(texts) < 2:
            raise InvalidSettingError(
                "an ensemble has at least two members: give members=KIND:ARGUMENT,KIND:ARGUMENT "
                f"(--members), got {self.members!r}"
            )
        members = []
        for text in texts:
            kind = settings_of(text.partition(":")[0])
            if kind is EnsembleSettings:
                raise InvalidSettingError(f"an ensemble cannot be a member of another: {text!r}")
            shared = _shared(kind)
            own = {name: value for name, value in self.options if name in shared}
            members.append(read_backend(text, own))
        return members

    def build(self) -> Backend:
        """Load all members."""
        members = self.member_settings()
        for member in members:  # a mistake in the last should not wait for the others to load
            member.check_source()
        return EnsembleBackend([member.build() for member in members])


def _shared(kind: type[BackendSettings]) -> set[str]:
    """Return the names of a kind's options that members share: its argument is each one's own."""
    return {field.name for field in fields(kind)} - {kind.ARGUMENT}


class EnsembleBackend(BatchedBackend):
    """Asks all members for each image; an image that one of them refuses, it refuses.

    The answer has the first member's resolution. A pixel is known where at least half of the
    members know it. Confidence is exp(-deviation / `DISAGREEMENT`), with the members' mean
    relative deviation from their median, times the share of members that know the pixel.
    """

    def __init__(self, members: Sequence[Backend]) -> None:
        """Put metric members together.

        Raises:
            BackendError: one is not metric, so that a median would mean nothing.
        """
        for member in members:
            if not member.identity.metric:
                raise BackendError(
                    f"{member.identity.name} is not metric, and depths of different units have no "
                    "median; fit it to metres with align=FOLDER (--align)"
                )
        self._members = list(members)
        names = [[member.identity.name, member.identity.version] for member in members]
        self.identity = TeacherIdentity(
            name=f"ensemble({'+'.join(name for name, _ in names)})",
            version=fingerprint([], names),
            metric=True,
        )

    def check(self, request: DepthRequest, height: int, width: int) -> None:
        """Refuse what a member is known to refuse."""
        for member in self._members:
            check_request(member, request, height, width)

    def infer_batch(
        self, images: Sequence[RgbImage], requests: Sequence[DepthRequest]
    ) -> list[DepthAnswer]:
        """Return the members' medians in metres, and their agreement.

        Raises:
            BackendRefusal: a member refuses an image.
        """
        answers = [infer_all(member, images, requests) for member in self._members]
        return [_together([answer.depth for answer in each]) for each in zip(*answers, strict=True)]


def _together(depths: Sequence[DepthMap]) -> DepthAnswer:
    height, width = depths[0].shape
    stack = np.stack([resize_depth(depth, height, width) for depth in depths])  # (members, H, W)
    share = np.isfinite(stack).mean(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no member knows some pixels
        median = np.nanmedian(stack, axis=0)
        deviation = np.nanmean(np.abs(stack - median), axis=0) / median
    known = share >= 0.5
    agreement = np.exp(-deviation / DISAGREEMENT) * share
    confidence: npt.NDArray[np.float32] = np.where(known, agreement, 0).astype(np.float32)
    return DepthAnswer(np.where(known, median, np.nan).astype(np.float32), confidence)
