"""`tiekd train` killed while readers run and batch norms learn: it ends with the same weights."""

from __future__ import annotations

from helpers.training import (
    losses,
    same,
    train,
    train_arguments,
    train_killed_and_continued,
    weights,
)


def test_batch_statistics_averaged_norms_and_a_reader_survive_a_kill_as_well(
    rgbd, tmp_path, one_thread
):
    groups = {"train": {"batch_norm": "batch"}}
    whole, output = tmp_path / "whole", tmp_path / "out"
    train(*train_arguments(rgbd, whole, "--workers", "1", **groups))
    train_killed_and_continued(rgbd, output, "--workers", "1", **groups)
    learnt = weights(whole)
    assert same(weights(output), learnt)
    assert same(weights(output, "student"), weights(whole, "student"))
    assert losses(output) == losses(whole)
    assert learnt["backbone.conv1.bn.running_mean"].abs().max() > 0  # not those it began with
