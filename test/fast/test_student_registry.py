"""The registry: numbers, the pointer, promotions and rollbacks."""

import errno
from dataclasses import replace

import pytest

from helpers.students import small_student
from tiekd_ros.student import registry as registry_module
from tiekd_ros.student.checkpoint import CheckpointError, StudentStatus
from tiekd_ros.student.registry import LiveChangedError, StudentRegistry


def test_versions_are_numbered_from_one(registry):
    assert registry.versions() == ["000001", "000002", "000003"]
    assert registry.card("000002").version == "000002"
    assert registry.live() is None


def test_a_folder_that_does_not_exist_has_no_versions(tmp_path):
    registry = StudentRegistry(tmp_path / "nowhere")
    assert registry.versions() == []
    assert registry.live() is None
    registry.clean()


def test_promoting_moves_the_pointer_and_keeps_the_history(registry):
    for version in ("000001", "000003", "000003", "000002"):
        registry.promote(version)
    assert registry.live() == "000002"
    assert registry.history() == ["000001", "000003"]


def test_rolling_back_goes_back_step_by_step_and_then_says_that_it_cannot(registry):
    for version in ("000001", "000003", "000002"):
        registry.promote(version)
    assert registry.rollback() == "000003"
    assert registry.rollback() == "000001"
    assert registry.live() == "000001"
    with pytest.raises(CheckpointError, match="no earlier version"):
        registry.rollback()
    assert registry.live() == "000001"


@pytest.mark.parametrize(
    ("promoted", "said"),
    [
        (["000001"], "live is 000001 after none"),
        (["000001", "000003"], "live is 000003 after 000001"),
        (["000001", "000003", "000002"], "live is 000002 after 000003"),
    ],
)
def test_rolling_back_from_another_student_than_expected_is_refused(registry, promoted, said):
    for version in promoted:
        registry.promote(version)
    before = registry.history()
    with pytest.raises(LiveChangedError, match=f"{said} and not 000002 after 000001 any more"):
        registry.rollback(expected=("000002", "000001"))
    assert (registry.live(), registry.history()) == (promoted[-1], before)


def test_rolling_back_from_the_expected_student_works(registry):
    for version in ("000003", "000001", "000002"):
        registry.promote(version)
    assert registry.rollback(expected=("000002", "000001")) == "000001"
    assert (registry.live(), registry.history()) == ("000001", ["000003"])


def test_a_mark_changes_status_and_reason_alone_and_keeps_nobody_from_promoting(registry):
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


def test_a_refused_version_goes_live_only_by_force(registry):
    registry.add(small_student(status=StudentStatus.REFUSED, reason="worse than before"))
    with pytest.raises(CheckpointError, match=r"refused by .*\(worse than before\).*--force"):
        registry.promote("000004")
    assert registry.live() is None
    registry.promote("000004", force=True)
    assert registry.live() == "000004"


def test_a_base_student_goes_live_only_by_force(registry):
    registry.add(small_student(5, status="base"))
    newest = registry.versions()[-1]
    with pytest.raises(CheckpointError, match=r"start for training.*--force"):
        registry.promote(newest)
    registry.promote(newest, force=True)
    assert registry.live() == newest


@pytest.mark.parametrize("expected", ["000002", None])
def test_a_promotion_over_another_student_than_expected_is_refused(registry, expected):
    registry.promote("000001")
    with pytest.raises(LiveChangedError, match=f"from {expected or 'none'} to 000001 meanwhile"):
        registry.promote("000003", expected_live=expected)
    assert (registry.live(), registry.history()) == ("000001", [])


def test_a_promotion_over_the_expected_student_works(registry):
    registry.promote("000001", expected_live=None)
    registry.promote("000003", expected_live="000001")
    registry.promote("000003", expected_live="000001")  # is live already: said again after a crash
    assert (registry.live(), registry.history()) == ("000003", ["000001"])


def test_a_version_is_on_the_disk_before_it_has_its_name(registry, student, monkeypatch):
    synced, sync = [], registry_module.sync_folder

    def note(folder):
        synced.append((folder.name.partition("-")[0], registry.versions()[-1]))
        sync(folder)

    monkeypatch.setattr(registry_module, "sync_folder", note)
    registry.add(student)
    assert synced == [(".writing", "000003"), ("students", "000004")]


def test_a_disk_that_refuses_to_sync_a_folder_is_told_and_nothing_is_left(
    registry, student, monkeypatch
):
    def refuse(folder):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(registry_module, "sync_folder", refuse)
    with pytest.raises(CheckpointError, match=r"cannot write to .*Input/output error"):
        registry.add(student)
    assert [p.name for p in registry.root.iterdir() if p.name.startswith(".writing")] == []
    assert registry.versions() == ["000001", "000002", "000003"]


def test_a_registry_that_cannot_be_locked_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot change what is live in .*No such file"):
        StudentRegistry(tmp_path / "nowhere").rollback()


@pytest.mark.parametrize("version", ["000009", "9", "", "../000001", "newest"])
def test_an_unknown_version_is_refused_with_the_known_ones(registry, version):
    with pytest.raises(CheckpointError, match="versions: 000001, 000002, 000003"):
        registry.promote(version)
    assert registry.live() is None


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"live": "000001"}', '{"history": []}'])
def test_a_damaged_pointer_says_what_to_do(registry, text):
    (registry.root / "live.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"live.json is damaged.*remove it and promote"):
        registry.live()
