"""The kinds of fixture: told by a file's arrays, or, where those leave it open, by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from reference.checks import Fixture, FixtureError
from reference.losses import check_response, check_ssim, check_tiekd, check_width_704
from reference.metrics import check_image, check_vectors
from reference.networks import check_student
from reference.train_step import check_train_step
from reference.training import check_one_cycle, check_pipeline


class Kind(NamedTuple):
    """One kind of file: any of its groups of arrays tells it, or else its prefix."""

    check: Callable[[Fixture], None]
    prefix: str
    groups: tuple[tuple[str, ...], ...]


KINDS = (
    Kind(check_width_704, "tiekd_kitti_w704", (("logits_rows", "logits_cols"),)),
    Kind(check_tiekd, "tiekd_", (("logits", "kd_gt"), ("logits_q", "kd_gt"))),
    Kind(check_response, "reskd_", (("logit", "kd_gt"),)),
    Kind(check_ssim, "ssim_", (("window", "ssim_ab"),)),
    Kind(check_vectors, "metrics_vectors", (("gt_0", "metrics_0"),)),
    Kind(check_image, "metrics_", (("gt_png_nz_val", "pred_rows"),)),
    Kind(check_one_cycle, "onecycle", (("total_iters", "lr"),)),
    Kind(check_pipeline, "train_pipeline", (("draw_names", "crop_size"),)),
    Kind(check_train_step, "trainstep_", (("param_names", "grad_norms"),)),
    Kind(check_student, "student_", (("s0_input_key", "s0_input_shape"),)),
)


def kind_of(fixture: Fixture) -> Kind:
    """Return the kind of a file.

    Raises:
        FixtureError: neither arrays nor name fit any.
    """
    for kind in KINDS:
        if any(all(key in fixture for key in group) for group in kind.groups):
            return kind
    for kind in KINDS:
        if fixture.path.name.startswith(kind.prefix):
            return kind
    raise FixtureError(
        f"unknown kind of fixture, with arrays {', '.join(sorted(fixture.arrays)[:6])}, ..."
    )


def check_fixture(fixture: Fixture) -> None:
    """Check all that is known of a file's kind.

    Raises:
        FixtureError: the kind is unknown, or an input is missing.
    """
    kind_of(fixture).check(fixture)
