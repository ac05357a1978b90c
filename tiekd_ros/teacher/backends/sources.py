"""What a backend is made of, looked at before anything is imported, fetched or loaded."""

from __future__ import annotations

import re
from pathlib import Path

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.teacher.backends.options import BackendOptions

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")


def check_source(name: str, options: BackendOptions) -> None:
    """Check that what the backend called `name` is to be made of is named, and here if a file.

    Raises:
        InvalidSettingError: it is not.
        DatasetError: the recording is no folder.
    """
    if name == "huggingface":
        check_model(options.model)
    elif name == "onnx":
        if not options.model:
            raise InvalidSettingError(
                "the onnx backend needs an exported network: give model=FILE.onnx (--model)"
            )
        path = Path(options.model).expanduser()
        if not path.is_file():
            raise InvalidSettingError(f"there is no file {path}; model must name an .onnx file")
    elif name == "recorded":
        if not options.frames:
            raise InvalidSettingError(
                "the recorded backend needs a folder of frames: give frames=DIR (--frames DIR), "
                "with images/, depth/ and K.txt in it"
            )
        if not Path(options.frames).is_dir():
            from tiekd_ros.datasets import DatasetError  # the command line need not load it

            raise DatasetError(f"the folder of frames {options.frames} does not exist")


def check_model(model: str) -> None:
    """Check that this can be a checkpoint: a folder here, or a hub id.

    Raises:
        InvalidSettingError: it is neither, or a file.
    """
    if not model:
        raise InvalidSettingError(
            "the huggingface backend needs a checkpoint: give model=DIR or model=ORG/NAME (--model)"
        )
    path = Path(model).expanduser()
    if path.is_file():
        raise InvalidSettingError(
            f"model {model!r} is a file; give the folder that it lies in, {path.parent}"
        )
    if not path.is_dir() and not _HUB_ID.fullmatch(model):
        raise InvalidSettingError(
            f"model {model!r} is no folder here, and no hub id either (ORG/NAME or "
            "ORG/NAME@REVISION)"
        )
