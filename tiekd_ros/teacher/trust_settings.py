"""How far a label may differ from what was seen before."""

from __future__ import annotations

from dataclasses import dataclass

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.settings import Settings, setting


@dataclass(frozen=True)
class TrustSettings(Settings):
    """How far a label may differ from what was seen before."""

    max_scale_jump: float = setting(
        4.0,
        "largest factor by which a label's median depth may lie outside that of the last labels, "
        "unless the live student sees the same change; 0 = any",
        minimum=0.0,
        maximum=1e6,
    )
    max_student_factor: float = setting(
        20.0,
        "largest factor between a label and the live student's depth of the same frame; 0 = any",
        minimum=0.0,
        maximum=1e6,
    )
    history: int = setting(30, "labels that a label is compared with", minimum=1, maximum=1000)
    min_history: int = setting(
        8, "labels of one teacher before the next is compared with them", minimum=1, maximum=1000
    )
    settle: int = setting(
        6,
        "doubted labels among the last `history` answers that agree with each other and are then "
        "believed, since the place is new, or the student off; 0 = never",
        minimum=0,
        maximum=1000,
    )
    max_settled_jump: float = setting(
        20.0,
        "largest factor of a jump that may settle; beyond, depth is likely in another unit",
        minimum=1.0,
        maximum=1e6,
    )
    student: bool = setting(True, "compare with the live student, on one CPU thread, once a label")
    max_flip_difference: float = setting(
        0.0,
        "largest median relative difference to the depth of the mirrored image, which is asked "
        "for as well and doubles the teacher's work; about 0.1 is strict; 0 = not asked for. A "
        "teacher that refuses mirrored images, such as `recorded`, is not judged by it",
        minimum=0.0,
        maximum=1.0,
    )

    def check(self) -> None:
        """Refuse factors that nothing passes, and a history that is never long enough."""
        for name in ("max_scale_jump", "max_student_factor"):
            factor = getattr(self, name)
            if 0 < factor < 1.01:
                raise InvalidSettingError(
                    f"{name} must be greater than 1 (1.01 at least), or 0 for any, got {factor:g}"
                )
        if self.min_history > self.history:
            raise InvalidSettingError(
                f"min_history must be at most history = {self.history}, got {self.min_history}"
            )
        if self.settle == 1 or self.settle > self.history:
            raise InvalidSettingError(
                f"settle must be 2 to history = {self.history}, or 0 for never, got {self.settle}: "
                "one doubted label agrees with nothing but itself"
            )

    @property
    def needs_student(self) -> bool:
        """Whether anything is compared with the live student."""
        return self.student and (self.max_scale_jump > 0 or self.max_student_factor > 0)
