"""NYU Depth v2 in the layout that depth estimation uses."""

from __future__ import annotations

from collections.abc import Sequence

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.datasets.calibration import find_intrinsics
from tiekd_ros.datasets.items import NYU_MAPS
from tiekd_ros.datasets.split_dataset import EntryFiles, SplitDataset, SplitEntry, SplitLayout

_TEACHER_PREFIX = "data_nyu_"


class NyuDataset(SplitDataset):
    """NYU Depth v2, images and depth registered to each other.

    ```
    DIR/[sync/|official_splits/{train,test}/]kitchen_0028b/rgb_00045.jpg
    DIR/[sync/|...]kitchen_0028b/sync_depth_00045.png    uint16, millimetres, 0 = unknown
    DIR/[split/|splits/]nyu_{train,test}.txt             image depth focal (a leading / is fine)
    DIR/teacher/data_nyu_kitchen_0028b_rgb_00045.png     uint16, metres / 10 * 65535
    ```

    The prefix `data_nyu_` of teacher maps may be missing. Intrinsics come from `K.txt` or
    `camera.yaml` in DIR; where there is none, from the split's focal length, with the
    principal point in the middle.
    """

    layout = SplitLayout(
        kind="nyu",
        image_roots=(".", "sync", "official_splits/train", "official_splits/test"),
        depth_roots=(".", "sync", "official_splits/train", "official_splits/test"),
        depth_units_per_m=1000.0,
        map_format=NYU_MAPS,
        splits={
            "train": ("nyu_train.txt", "nyudepthv2_train_files_with_gt.txt"),
            "test": ("nyu_test.txt", "nyudepthv2_test_files_with_gt.txt"),
        },
        example="kitchen_0028b/rgb_00045.jpg",
    )

    def _teacher_names(self, entry: SplitEntry) -> Sequence[str]:
        (name,) = super()._teacher_names(entry)
        plain = name.removeprefix(_TEACHER_PREFIX)
        return (_TEACHER_PREFIX + plain, plain)

    def _intrinsics(self, files: EntryFiles, size: tuple[int, int]) -> Intrinsics:
        return find_intrinsics(self.path, size) or super()._intrinsics(files, size)
