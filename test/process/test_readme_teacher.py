"""The README's plain client of a teacher, against the server that the README starts."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from helpers.children import PATIENCE_S, child_environment, start_python
from helpers.readme import program
from helpers.teachers import METRIC, RELATIVE, StubBackend, foreign_server, picture, serving
from tiekd_ros.core.images import encode_jpeg
from tiekd_ros.teacher.service import ServiceSettings, TeacherService

TOKEN = "0123456789abcdef"


@pytest.fixture
def client(tmp_path) -> list[str]:
    """Return the command of the README's program."""
    file = tmp_path / "client.py"
    file.write_text(program("docs/teacher.md", "InferInput"))
    return [sys.executable, str(file)]


@pytest.fixture
def image(tmp_path) -> Path:
    file = tmp_path / "image.jpg"
    file.write_bytes(encode_jpeg(picture()))
    return file


class AnswersSayNothing(TeacherService):
    """Answers without parameters, as Triton's Python backend does."""

    def ModelInfer(self, request, context):  # noqa: N802 (the protocol says so)
        response = super().ModelInfer(request, context)
        response.ClearField("parameters")
        return response


def run(command: list[str], url: str, image: Path, **environment: str) -> str:
    done = subprocess.run(
        [*command, url, str(image)],
        capture_output=True,
        env=child_environment(**environment),
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.stdout + done.stderr


def test_it_is_15_lines_of_plain_tritonclient():
    text = program("docs/teacher.md", "InferInput")
    assert len(text.splitlines()) <= 15
    assert "tiekd" not in text.replace("TIEKD_TEACHER_TOKEN", "")


def test_it_prints_the_depth_and_whether_it_is_metres_also_where_only_the_model_says_it(
    client, image
):
    for identity, unit in ((METRIC, "m"), (RELATIVE, r"\(no metres\)")):
        service = AnswersSayNothing(StubBackend(identity=identity), ServiceSettings())
        with (
            closing(service),
            foreign_server(service) as silent,
            serving(StubBackend(identity=identity)) as url,
        ):
            for each in (url, silent):
                assert re.match(rf"64x48: median 3\.0\d {unit}\n", run(client, each, image))


def test_it_shows_the_token_that_the_environment_holds(client, image, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    tokens.chmod(0o600)
    with serving(StubBackend(), token_file=str(tokens)) as url:
        assert "64x48: median" in run(client, url, image, TIEKD_TEACHER_TOKEN=TOKEN)
        assert "UNAUTHENTICATED" in run(client, url, image)


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


def test_it_gets_depth_from_a_real_network(client, image, tmp_path):
    pytest.importorskip("transformers")
    from helpers.checkpoints import write_depth_anything

    folder = write_depth_anything(tmp_path / "tiny")
    with teacher("--backend", "huggingface", "--model", str(folder)) as url:
        assert re.match(r"\d+x\d+: median \d+\.\d\d m", run(client, url, image))
