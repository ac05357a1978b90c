"""The registry: numbers, the pointer, promotions and rollbacks."""

import errno
from dataclasses import replace

import pytest

from helpers.students import small_student
from tiekd_ros.student import registry as registry_module
from tiekd_ros.student.checkpoint import CheckpointError, StudentStatus
from tiekd_ros.student.registry import LiveChangedError, StudentRegistry


def test_versions_are_numbered_from_one(registry, tmp_path):
    assert registry.versions() == ["000001", "000002", "000003"]
    assert registry.card("000002").version == "000002"
    assert registry.live() is None
    nowhere = StudentRegistry(tmp_path / "nowhere")
    assert (nowhere.versions(), nowhere.live()) == ([], None)
    nowhere.clean()
    with pytest.raises(CheckpointError, match=r"cannot change what is live in .*No such file"):
        nowhere.rollback()


def test_promoting_keeps_a_history_through_which_rolling_back_goes_step_by_step(registry):
    for version in ("000001", "000003", "000003", "000002"):
        registry.promote(version)
    assert registry.live() == "000002"
    assert registry.history() == ["000001", "000003"]
    assert registry.rollback() == "000003"
    assert registry.rollback() == "000001"
    with pytest.raises(CheckpointError, match="no earlier version"):
        registry.rollback()
    assert registry.live() == "000001"


def test_rolling_back_from_another_student_than_expected_is_refused(registry):
    wanted = ("000002", "000001")
    for version, said in (
        ("000001", "live is 000001 after none"),
        ("000003", "live is 000003 after 000001"),
        ("000002", "live is 000002 after 000003"),
    ):
        registry.promote(version)
        before = registry.history()
        with pytest.raises(LiveChangedError, match=f"{said} and not 000002 after 000001 any more"):
            registry.rollback(expected=wanted)
        assert (registry.live(), registry.history()) == (version, before)
    for version in wanted[::-1]:
        registry.promote(version)
    assert registry.rollback(expected=wanted) == "000001"
    assert registry.history() == ["000001", "000003", "000002"]


def test_a_mark_changes_status_and_reason_alone_and_prevents_no_promotion(registry):
    before = registry.card("000002")
    registry.mark("000002", StudentStatus.ROLLED_BACK, "worse where the robot is now")
    card = registry.load("000002").card
    assert (card.status, card.reason) == ("rolled back", "worse where the robot is now")
    assert replace(card, status=before.status, reason=before.reason) == before
    registry.promote("000002")
    assert registry.live() == "000002"
    with pytest.raises(CheckpointError, match="there is no student '000009'"):
        registry.mark("000009", StudentStatus.ROLLED_BACK, "")


def test_rolling_back_to_a_version_that_is_gone_leaves_the_pointer(registry):
    registry.promote("000001")
    registry.promote("000002")
    (registry.root / "000001" / "student.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="000001"):
        registry.rollback()
    assert registry.live() == "000002"


def test_a_refused_version_and_a_base_student_go_live_only_by_force(registry):
    for status, fault in (
        (StudentStatus.REFUSED, r"refused by .*\(worse than before\).*--force"),
        (StudentStatus.BASE, r"start for training.*--force"),
    ):
        version = registry.add(small_student(status=status, reason="worse than before")).version
        before = registry.live()
        with pytest.raises(CheckpointError, match=fault):
            registry.promote(version)
        assert registry.live() == before
        registry.promote(version, force=True)
        assert registry.live() == version


def test_a_promotion_over_another_student_than_expected_is_refused(registry):
    registry.promote("000001", expected_live=None)
    for expected in ("000002", None):
        with pytest.raises(LiveChangedError, match=f"from {expected or 'none'} to 000001 meanwh"):
            registry.promote("000003", expected_live=expected)
        assert (registry.live(), registry.history()) == ("000001", [])
    for _ in range(2):  # it is live already: said again after a crash
        registry.promote("000003", expected_live="000001")
    assert (registry.live(), registry.history()) == ("000003", ["000001"])


def test_a_version_is_on_the_disk_before_it_has_its_name(registry, student, monkeypatch):
    synced, sync = [], registry_module.sync_folder

    def note(folder):
        synced.append((folder.name.partition("-")[0], registry.versions()[-1]))
        sync(folder)

    def refuse(folder):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(registry_module, "sync_folder", note)
    registry.add(student)
    assert synced == [(".writing", "000003"), ("students", "000004")]
    monkeypatch.setattr(registry_module, "sync_folder", refuse)
    with pytest.raises(CheckpointError, match=r"cannot write to .*Input/output error"):
        registry.add(student)
    assert [p.name for p in registry.root.iterdir() if p.name.startswith(".writing")] == []
    assert registry.versions() == ["000001", "000002", "000003", "000004"]


def test_an_unknown_version_is_refused_with_the_known_ones(registry):
    for version in ("000009", "9", "", "../000001", "newest"):
        with pytest.raises(CheckpointError, match="versions: 000001, 000002, 000003"):
            registry.promote(version)
    assert registry.live() is None


def test_a_damaged_pointer_says_what_to_do(registry):
    for text in ("", "{", "{}", "[]", '{"live": "000001"}', '{"history": []}'):
        (registry.root / "live.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"live.json is damaged.*remove it and promote"):
            registry.live()
