"""A backend: one teacher as the server sees it, and the settings that it is built from."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, TypeGuard

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import RgbImage
from tiekd_ros.core.settings import Settings
from tiekd_ros.teacher.errors import BackendRefusal
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, TeacherIdentity

_LOG = logging.getLogger(__name__)


class Backend(Protocol):
    """One teacher. The server calls it from one or several threads.

    It may have a method `check(request, height, width)` as well, see `check_request`.
    """

    @property
    def identity(self) -> TeacherIdentity:
        """Name, version and unit of this teacher; fixed while the server runs."""
        ...

    def infer(self, image: RgbImage, request: DepthRequest) -> DepthAnswer:
        """Label one image.

        Args:
            image: the decoded image, uint8 RGB (H, W, 3).
            request: what came with it: intrinsics, stamp, frame; not the encoded image.

        Returns:
            Depth of the same view, at any resolution of the image's aspect ratio.

        Raises:
            BackendRefusal: this image cannot be labelled, however often it is sent.
        """
        ...


class BatchBackend(Backend, Protocol):
    """A teacher that labels several images at once faster than one by one."""

    def infer_batch(
        self, images: Sequence[RgbImage], requests: Sequence[DepthRequest]
    ) -> list[DepthAnswer]:
        """Label images of one size; the answers come in their order.

        Raises:
            BackendRefusal: one of them cannot be labelled; none is.
        """
        ...


@dataclass(frozen=True)
class BackendSettings(Settings):
    """Settings of one kind of backend; each kind has its own fields and its own `build`."""

    ARGUMENT: ClassVar[str]
    """The field that ARGUMENT sets in `KIND:ARGUMENT`."""
    MISSING: ClassVar[str] = ""
    """Message where that field is empty; "" where it may be."""

    def check(self) -> None:
        """Check that the argument is given where it has to be."""
        if self.MISSING and not getattr(self, self.ARGUMENT):
            raise InvalidSettingError(self.MISSING)

    @classmethod
    def from_options(cls, kind: str, options: Mapping[str, Any]) -> BackendSettings:
        """Make settings of the options that were given, by name.

        Args:
            kind: the backend's name, for messages.
            options: names and values; what is missing keeps its default.

        Raises:
            InvalidSettingError: an option is not one of this kind's, or has a bad value.
        """
        names = {field.name for field in fields(cls)}
        refuse_unused(kind, [name for name in options if name not in names])
        return cls(**options)

    def check_source(self) -> None:
        """Check what can be checked of model or folder before anything is fetched or loaded.

        Raises:
            TiekdError: it is not there.
        """

    @abstractmethod
    def build(self) -> Backend:
        """Load the backend.

        Raises:
            TiekdError: it cannot start.
        """


def refuse_unused(kind: str, names: Sequence[str]) -> None:
    """Refuse options that a kind of backend does not have, by the first one's name."""
    if names:
        flag = "--" + names[0].removesuffix("_s").replace("_", "-")
        raise InvalidSettingError(
            f"{names[0]} ({flag}) says nothing to the backend {kind}; leave it out"
        )


def check_request(backend: Backend, request: DepthRequest, height: int, width: int) -> None:
    """Let a backend refuse a request before its image is decoded, where it has a `check`.

    Args:
        backend: the teacher.
        request: what came with the image.
        height: rows of the image.
        width: columns of the image.

    Raises:
        BackendRefusal: this request cannot be labelled; `infer` would refuse it too.
    """
    check = getattr(backend, "check", None)
    if check is not None:
        check(request, height, width)


def takes_batches(backend: Backend) -> TypeGuard[BatchBackend]:
    """Tell whether a backend is a `BatchBackend`."""
    return hasattr(backend, "infer_batch")


def infer_all(
    backend: Backend, images: Sequence[RgbImage], requests: Sequence[DepthRequest]
) -> list[DepthAnswer]:
    """Label images of one size, at once where the backend can; raises what it raises."""
    if takes_batches(backend):
        return backend.infer_batch(images, requests)
    return [backend.infer(*pair) for pair in zip(images, requests, strict=True)]


def label_all(
    backend: Backend, images: Sequence[RgbImage], requests: Sequence[DepthRequest]
) -> list[DepthAnswer | Exception]:
    """Label images of one size, at once where the backend can.

    Where a batch breaks, or is too much for the memory, its images are labelled one by one: a
    bad image does not spoil its neighbours' labels.

    Returns:
        For each image its label, or the exception that it raised.
    """
    if takes_batches(backend) and len(images) > 1:
        try:
            answers = backend.infer_batch(images, requests)
            if len(answers) == len(images):
                return list(answers)
            _LOG.error("%d answers came for %d images", len(answers), len(images))
        except BackendRefusal:
            pass  # which image was meant shows when each is asked for by itself
        except Exception as error:
            _LOG.warning("a batch of %d broke, going on one by one: %s", len(images), error)
    return [_attempt(backend, *pair) for pair in zip(images, requests, strict=True)]


def _attempt(backend: Backend, image: RgbImage, request: DepthRequest) -> DepthAnswer | Exception:
    try:
        return backend.infer(image, request)
    except Exception as error:
        return error
