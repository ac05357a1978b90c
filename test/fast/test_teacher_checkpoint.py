"""What is given as a checkpoint and is none: the first advice is the right one."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from helpers.checkpoints import write_depth_anything
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.teacher.backends.huggingface import HuggingFaceSettings
from tiekd_ros.teacher.errors import BackendError


@pytest.fixture
def checkpoint(tmp_path):
    return write_depth_anything(tmp_path / "tiny")


def load(folder):
    return HuggingFaceSettings(model=str(folder)).build()


def test_what_is_no_depth_model_is_told_so_before_any_other_advice(checkpoint, tmp_path):
    (checkpoint / "config.json").write_text('{"model_type": "bert"}')
    (checkpoint / "preprocessor_config.json").unlink()
    with pytest.raises(BackendError, match=r"is not a depth model: .* of a bert network"):
        load(checkpoint)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BackendError, match="empty is no checkpoint of a depth model"):
        load(empty)


def test_a_file_of_a_checkpoint_is_not_taken_for_a_hub_id(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    with pytest.raises(
        InvalidSettingError, match=rf"is a file; give the folder .* {checkpoint.name}$"
    ):
        load(f"{checkpoint.name}/model.safetensors")
