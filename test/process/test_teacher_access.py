"""Tokens: what is accepted, what is refused, and what a source of tokens has to be like."""

from __future__ import annotations

import pytest

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.teacher.security import Tokens, authorization_of

OLD, NEW = "old-token-0123456789", "new-token-0123456789"
VARIABLE = "TIEKD_TEACHER_TOKENS"


@pytest.fixture(autouse=True)
def no_tokens_in_the_environment(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def token_file(folder, text: str, mode: int = 0o600):
    path = folder / "tokens"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("token", [OLD, NEW])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_each_of_several_tokens_is_accepted(tmp_path, token, scheme):
    text = f"# the fleet's\n{OLD}\n\n  {NEW}  \n"
    tokens = Tokens.load(str(token_file(tmp_path, text)))
    assert len(tokens) == 2
    assert tokens.accept(f"{scheme} {token}")


@pytest.mark.parametrize(
    "header",
    [
        "", "Bearer", "Bearer ", OLD, f"Basic {OLD}", f"Bearer {OLD[:-1]}", f"Bearer {OLD}x",
        f"Bearer {OLD.upper()}", f"Bearer {OLD} {NEW}", f"Bearer {OLD},{NEW}",
        "Bearer " + "x" * 9999, "Bearer \udcff" + OLD, "Bearer é" + OLD,
    ],
)  # fmt: skip
def test_anything_else_is_not(header):
    assert not Tokens([OLD, NEW]).accept(header)


def test_without_tokens_nobody_is_accepted():
    tokens = Tokens.load()
    assert not tokens
    assert not tokens.accept("Bearer ")
    assert not tokens.accept(f"Bearer {OLD}")


def test_tokens_come_from_the_environment_where_no_file_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"{OLD}\n{NEW}")
    assert Tokens.load().accept(f"Bearer {NEW}")
    from_file = Tokens.load(str(token_file(tmp_path, OLD)))
    assert not from_file.accept(f"Bearer {NEW}")


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        ("", 0o600, "has no token"),
        ("# only a comment\n\n", 0o600, "has no token"),
        ("short", 0o600, "5 characters; use at least 16"),
        ("a token with spaces", 0o600, "a space"),
        ("tökén-0123456789-0123", 0o600, "outside ASCII"),
        (OLD, 0o644, "open to everybody .*mode 644.*chmod 600"),
        (OLD, 0o602, "open to everybody"),
    ],
)
def test_a_file_that_makes_no_safe_tokens_is_refused(tmp_path, text, mode, reason):
    path = token_file(tmp_path, text, mode)
    with pytest.raises(InvalidSettingError, match=reason) as raised:
        Tokens.load(str(path))
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidSettingError, match=r"cannot read the token file .*gone"):
        Tokens.load(str(tmp_path / "gone"))


def test_a_variable_that_is_set_and_holds_no_token_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(InvalidSettingError, match=f"{VARIABLE} has no token"):
        Tokens.load()


def test_no_refusal_shows_a_token(tmp_path):
    with pytest.raises(InvalidSettingError) as raised:
        Tokens.load(str(token_file(tmp_path, f"{OLD}\nsecret one too\n")))
    assert "secret" not in str(raised.value)
    assert OLD not in str(raised.value)


def test_the_tokens_themselves_do_not_stay_in_memory():
    tokens = Tokens([OLD])
    assert OLD.encode() not in b"".join(tokens._digests)
    assert OLD not in repr(vars(tokens))


def test_only_one_authorization_header_counts():
    header = f"Bearer {OLD}"
    assert authorization_of([("user-agent", "x"), ("authorization", header)]) == header
    assert authorization_of([("authorization", "Bearer x"), ("authorization", header)]) == ""
    assert authorization_of([]) == ""
    assert authorization_of(None) == ""
