"""Mode `paper`: TIE-KD exactly as its published code computes it, number for number.

TIE-KD, arXiv 2402.14340. The published code's peculiarities are kept on purpose, so that its
results and checkpoints can be reproduced; `tiekd_ros.method.target` and `.losses` hold
the corrected method, and docs/method.md compares the two.
"""

from tiekd_ros.method.paper.losses import (
    CROP_TOP,
    CROP_WIDTH,
    LOSS_WEIGHT,
    RESPONSE_LOSSES,
    Crop,
    PublishedDivergence,
    PublishedDpmLoss,
    PublishedLoss,
    PublishedLossParts,
    crop_upper_rows,
    gaussian_window,
    loss_numbers,
    mse_loss,
    published_ssim,
    si_loss,
    ssim_loss,
    ssim_mse_loss,
    ssim_si_loss,
)
from tiekd_ros.method.paper.pipeline import (
    KITTI_AUGMENTATION,
    NYU_AUGMENTATION,
    Augmentation,
    Draws,
    TrainingView,
    apply_draws,
    augment,
    draw,
)
from tiekd_ros.method.paper.target import PUBLISHED_SIGMA_M, PublishedTarget

__all__ = [
    "CROP_TOP",
    "CROP_WIDTH",
    "KITTI_AUGMENTATION",
    "LOSS_WEIGHT",
    "NYU_AUGMENTATION",
    "PUBLISHED_SIGMA_M",
    "RESPONSE_LOSSES",
    "Augmentation",
    "Crop",
    "Draws",
    "PublishedDivergence",
    "PublishedDpmLoss",
    "PublishedLoss",
    "PublishedLossParts",
    "PublishedTarget",
    "TrainingView",
    "apply_draws",
    "augment",
    "crop_upper_rows",
    "draw",
    "gaussian_window",
    "loss_numbers",
    "mse_loss",
    "published_ssim",
    "si_loss",
    "ssim_loss",
    "ssim_mse_loss",
    "ssim_si_loss",
]
