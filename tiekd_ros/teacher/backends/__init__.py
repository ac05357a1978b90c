"""What can answer for depth, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.settings import Settings, setting
from tiekd_ros.teacher.backend import Backend


@dataclass(frozen=True)
class BackendOptions(Settings):
    """Options of all backends; each uses its own."""

    frames: str = setting("", "recorded: folder of images/, depth/ and K.txt that it answers from")
    seed: int = setting(
        0,
        "synthetic: seed of the world; the camera's must be the same",
        minimum=0,
        maximum=2**31 - 1,
    )
    period_s: float = setting(
        60.0, "synthetic: time of the camera's one round", unit="s", minimum=1.0, maximum=86400.0
    )


# A backend is imported only when it is asked for: the next may need torch and gigabytes.
def _recorded(options: BackendOptions) -> Backend:
    from tiekd_ros.teacher.backends.recorded import RecordedBackend

    if not options.frames:
        raise InvalidSettingError(
            "the recorded backend needs a folder of frames: give frames=DIR (--frames DIR), with "
            "images/, depth/ and K.txt in it"
        )
    return RecordedBackend(Path(options.frames))


def _synthetic(options: BackendOptions) -> Backend:
    from tiekd_ros.teacher.backends.synthetic import SyntheticBackend
    from tiekd_ros.worlds import WorldSettings

    return SyntheticBackend(WorldSettings(seed=options.seed, period_s=options.period_s))


_FACTORIES: dict[str, Callable[[BackendOptions], Backend]] = {
    "recorded": _recorded,
    "synthetic": _synthetic,
}
BACKENDS = tuple(_FACTORIES)


def create_backend(name: str, options: BackendOptions | None = None) -> Backend:
    """Make the backend called `name` ("recorded" or "synthetic").

    Raises:
        InvalidSettingError: there is no such backend, or it lacks an option.
        TiekdError: what the backend says when it cannot start, of its folder for example.
    """
    factory = _FACTORIES.get(name)
    if factory is None:
        raise InvalidSettingError(
            f"unknown teacher backend {name!r}: there are {', '.join(BACKENDS)}"
        )
    return factory(options or BackendOptions())
