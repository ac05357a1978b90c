"""The README's plain client of a teacher, against the server that the README starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from helpers.children import PATIENCE_S, start_python
from helpers.readme import plain_client, run_client
from helpers.teachers import METRIC, RELATIVE, StubBackend, foreign_server, secret, serving
from tiekd_ros.teacher.service import ServiceSettings, TeacherService

TOKEN = "0123456789abcdef"


@pytest.fixture
def run(tmp_path) -> Callable[..., str]:
    """Return what the program says to a server's url."""

    def run(url: str, **environment: str) -> str:
        done = run_client(url, tmp_path, **environment)
        return done.stdout + done.stderr

    return run


class AnswersSayNothing(TeacherService):
    """Answers without parameters, as Triton's Python backend does."""

    def ModelInfer(self, request, context):  # noqa: N802 (the protocol says so)
        response = super().ModelInfer(request, context)
        response.ClearField("parameters")
        return response


def test_it_is_15_lines_of_plain_tritonclient():
    text = plain_client()
    assert len(text.splitlines()) <= 15
    assert "tiekd" not in text.replace("TIEKD_TEACHER_TOKEN", "")


@pytest.mark.parametrize(
    ("identity", "unit"), [(METRIC, "m"), (RELATIVE, r"\(no metres\)")], ids=["metric", "relative"]
)
def test_it_prints_the_depth_that_a_server_answers_and_its_unit(run, identity, unit):
    said = rf"64x48: median 3\.0\d {unit}\n"
    with serving(StubBackend(identity=identity)) as url:
        assert re.match(said, run(url))
    service = AnswersSayNothing(StubBackend(identity=identity), ServiceSettings())
    with closing(service), foreign_server(service) as url:
        assert re.match(said, run(url))


def test_it_shows_the_token_that_the_environment_holds(run, tmp_path):
    with serving(StubBackend(), token_file=secret(tmp_path / "tokens", TOKEN)) as url:
        assert "64x48: median" in run(url, TIEKD_TEACHER_TOKEN=TOKEN)
        assert "UNAUTHENTICATED" in run(url)


@contextmanager
def teacher(*arguments: str) -> Iterator[str]:
    """Run `tiekd teacher serve` on a free port; yields host:port."""
    process = start_python("-m", "tiekd_ros.cli", "teacher", "serve", "--port", "0", *arguments)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:\d+", line)
        assert found, line + (process.communicate(timeout=PATIENCE_S)[1] if not line else "")
        yield found.group()
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)


def test_it_gets_depth_from_a_real_network(run, tmp_path):
    pytest.importorskip("transformers")
    from helpers.checkpoints import write_depth_anything

    folder = write_depth_anything(tmp_path / "tiny")
    with teacher("--backend", "huggingface", "--model", str(folder)) as url:
        assert re.match(r"\d+x\d+: median \d+\.\d\d m", run(url))
