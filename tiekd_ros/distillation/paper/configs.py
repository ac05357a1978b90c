"""Where the published configs of one data set differ: numbers of single losses."""

from __future__ import annotations

from tiekd_ros.distillation.paper.response import SI_WEIGHT

_DPM_SIGMA_M = {"kitti": 0.8, "nyu": 0.15}
_DPM_SIGMA_KITTI_RESNET50_M = 0.5
_SI_WEIGHT_NYU = 1.5


def loss_numbers(
    dataset: str, objective: str, architecture: str, *, baseline: bool = False
) -> dict[str, float]:
    """Return the published numbers of an objective, by the name of their setting in LossSettings.

    The sigma of a published config reaches the loss only where L_DPM is trained alone (in TIE-KD
    0.5 m counts, whatever the config says), and the weight of SI only where SI is.

    Args:
        dataset: kitti or nyu.
        objective: its name.
        architecture: the student's.
        baseline: the student learns measured depth, not a teacher's.

    Returns:
        What differs from the defaults, empty where nothing does.
    """
    if objective == "paper-dpm":
        resnet50 = dataset == "kitti" and architecture.startswith("resnet50")
        sigma = _DPM_SIGMA_KITTI_RESNET50_M if resnet50 else _DPM_SIGMA_M[dataset]
        return {"paper_sigma_m": sigma}
    if objective == "si":
        distilled = dataset == "nyu" and not baseline
        return {"si_weight": _SI_WEIGHT_NYU if distilled else SI_WEIGHT}
    return {}
