"""The client against teachers that hang, restart and die, and against its own end.

Over real gRPC on 127.0.0.1 and, where a server is killed, a real process. A test passes when
the client comes back at once, or by its deadline, and works again as soon as the server does.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from helpers.children import child_environment
from helpers.teachers import (
    SilentBackend,
    StubBackend,
    depth_request,
    free_port,
    serving,
)
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherUnreachableError
from tiekd_ros.teacher.protocol import TeacherIdentity
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.settings import ServerSettings

PROMPT_S = 5.0  # what must end at once ends within this on a busy machine
DEADLINE_S = 0.3


def client_for(url: str, **settings) -> TeacherClient:
    return TeacherClient(ClientSettings(url=url, **{"timeout_s": 5.0, **settings}))


def test_a_teacher_that_never_answers_meets_the_deadline():
    with serving(SilentBackend()) as url, client_for(url, timeout_s=DEADLINE_S) as client:
        started = time.monotonic()
        with pytest.raises(TeacherUnreachableError, match="DEADLINE_EXCEEDED"):
            client.infer(depth_request())
    assert DEADLINE_S < time.monotonic() - started < DEADLINE_S + PROMPT_S


def test_the_client_recovers_when_the_server_comes_back_with_another_teacher():
    port = free_port()
    first = TeacherServer(StubBackend(), ServerSettings(port=port))
    first.start()
    with client_for(f"127.0.0.1:{port}") as client:
        client.infer(depth_request())
        first.stop(0.0)
        with pytest.raises(TeacherUnreachableError):
            client.infer(depth_request())
        successor = TeacherIdentity("stub", "8", metric=True)
        second = TeacherServer(StubBackend(identity=successor), ServerSettings(port=port))
        second.start()
        try:
            assert client.identity() == successor
            assert client.infer(depth_request()).teacher == successor
        finally:
            second.stop(0.0)


SLOW_SERVER = """
import sys, time
from helpers.teachers import StubBackend, ramp
from tiekd_ros.teacher.process import serve
from tiekd_ros.teacher.settings import ServerSettings
def answer(image, request):
    print("asked", flush=True)
    time.sleep(float(sys.argv[1]))
    return ramp()
serve(StubBackend(answer), ServerSettings(), lambda port: print(port, flush=True))
"""


def start_process(seconds_per_answer: float) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_SERVER, str(seconds_per_answer)],
        stdout=subprocess.PIPE,
        env=child_environment(),
        text=True,
    )
    return process, f"127.0.0.1:{int(process.stdout.readline())}"


def test_a_server_killed_in_mid_answer_is_unreachable_at_once():
    process, url = start_process(seconds_per_answer=30)
    try:
        with client_for(url, timeout_s=30.0) as client:
            errors = []

            def ask():
                try:
                    client.infer(depth_request())
                except TeacherUnreachableError as error:
                    errors.append(error)

            asking = threading.Thread(target=ask)
            asking.start()
            assert process.stdout.readline() == "asked\n"
            process.send_signal(signal.SIGKILL)
            asking.join(PROMPT_S)
            assert not asking.is_alive()
            assert len(errors) == 1
    finally:
        process.kill()
        process.communicate()


def test_a_server_told_to_end_finishes_the_answer_it_is_at():
    process, url = start_process(seconds_per_answer=0.3)
    try:
        with client_for(url) as client:
            answers = []
            asking = threading.Thread(target=lambda: answers.append(client.infer(depth_request())))
            asking.start()
            assert process.stdout.readline() == "asked\n"
            process.send_signal(signal.SIGTERM)
            asking.join(PROMPT_S)
            assert len(answers) == 1
        assert process.wait(PROMPT_S) == 0
    finally:
        process.kill()
        process.communicate()


def test_closing_ends_a_pending_call_at_once():
    backend = SilentBackend()
    with serving(backend) as url:
        client = client_for(url, timeout_s=30.0)
        errors = []

        def ask():
            try:
                client.infer(depth_request())
            except TeacherUnreachableError as error:
                errors.append(str(error))

        asking = threading.Thread(target=ask)
        asking.start()
        assert backend.asked.wait(PROMPT_S)
        client.close()
        asking.join(PROMPT_S)
        assert not asking.is_alive()
        assert "closed" in errors[0]
        with pytest.raises(TeacherUnreachableError, match="closed"):
            client.infer(depth_request())
