"""deploy/: the systemd unit and the container file agree with the program and the repository."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.certificates import make_certificates
from helpers.children import PATIENCE_S, child_environment, start_python
from helpers.teachers import StubBackend, depth_request, picture, serving
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherRefusedError

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy" / "systemd" / "tiekd-teacher.service"
TOKEN = "a-token-of-the-robots"


def value_of(name: str, file: Path = UNIT) -> str:
    """Return the value of a setting, with its continued lines joined."""
    text = file.read_text().replace("\\\n", " ")
    (found,) = re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)
    return str(found)


@pytest.fixture
def credentials(tmp_path) -> Path:
    """Return a folder as systemd makes it of the unit's LoadCredential lines."""
    made = make_certificates(tmp_path / "made")
    folder = tmp_path / "credentials"
    folder.mkdir()
    names = re.findall(r"^LoadCredential=(\S+?):", UNIT.read_text(), re.MULTILINE)
    contents = {"tokens": TOKEN, "cert.pem": made.cert.read_text(), "key.pem": made.key.read_text()}
    assert sorted(names) == sorted(contents)
    for name in names:
        (folder / name).write_text(contents[name])
        (folder / name).chmod(0o400)
    return folder


def test_what_the_unit_starts_serves_and_tells_systemd(credentials, tmp_path):
    port = free_port()
    options = value_of("TEACHER_OPTIONS", UNIT.parent / "teacher.env")
    for old, new in (
        (r"--backend \S+ --model \S+", "--backend synthetic"),
        (r"--host \S+", "--host 127.0.0.1"),
        (r"--port \d+", f"--port {port}"),
        (r"--metrics-port \d+", f"--metrics-port {free_port()}"),
    ):
        options, count = re.subn(old, new, options)
        assert count == 1, old
    line = value_of("ExecStart").replace("$TEACHER_OPTIONS", options)
    program, *arguments = shlex.split(line.replace("${CREDENTIALS_DIRECTORY}", str(credentials)))
    assert program.endswith("/bin/tiekd")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(PATIENCE_S)
        notify = str(tmp_path / "notify")
        process = start_python("-m", "tiekd_ros.cli", *arguments, NOTIFY_SOCKET=notify)
        try:
            assert "READY=1" in notified.recv(4096).decode()
            settings = ClientSettings(
                url=f"localhost:{port}",
                tls=True,
                ca=str(tmp_path / "made" / "ca.pem"),
                token_file=str(credentials / "tokens"),
            )
            with TeacherClient(settings) as client:
                assert client.identity().name == "synthetic"
                with pytest.raises(TeacherRefusedError, match="unknown image"):
                    client.infer(depth_request(picture()))
        finally:
            process.send_signal(signal.SIGTERM)
            log = process.communicate(timeout=PATIENCE_S)[1]
        assert "STOPPING=1" in notified.recv(4096).decode()
    assert process.returncode == 0, log
    assert all(line.startswith("{") for line in log.splitlines()), log


def test_the_unit_keeps_the_gpus_devices_open():
    text = UNIT.read_text()
    assert value_of("ExecStartPre") == "-+/usr/bin/nvidia-modprobe -c 0 -u"
    for closes in ("ProtectClock", "PrivateDevices", "DevicePolicy", "DeviceAllow"):
        assert not re.search(rf"^{closes}=", text, re.MULTILINE), closes


def test_systemd_finds_no_fault_with_the_unit(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here")
    program = tmp_path / "tiekd"
    program.symlink_to(sys.executable)  # the unit's own does not exist here
    text = UNIT.read_text().replace("/opt/tiekd/bin/tiekd teacher", f"{program} teacher")
    unit = tmp_path / UNIT.name
    unit.write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
        timeout=PATIENCE_S,
        check=False,
    )
    faults = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert faults == []


def test_a_container_file_copies_what_there_is():
    for file in (ROOT / "deploy").rglob("Containerfile"):
        copies = re.findall(r"^COPY (?!--from)(.+) \S+$", file.read_text(), re.MULTILINE)
        sources = [source for copy in copies for source in copy.split()]
        assert "tiekd_ros" in sources
        assert all((ROOT / source).exists() for source in sources), sources


def test_the_containers_health_check_sees_what_a_robot_sees(tmp_path):
    text = (ROOT / "deploy" / "container" / "Containerfile").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^HEALTHCHECK .*? CMD (.+)$", text, re.MULTILINE)
    program, address = "/opt/tiekd/bin/tiekd", "127.0.0.1:8001"
    assert (command.count(program), command.count(address)) == (1, 1)
    made = make_certificates(tmp_path / "made")
    token_file = tmp_path / "tokens"
    token_file.write_text(TOKEN)
    token_file.chmod(0o600)
    options = f"--tls --ca {made.ca} --server-name localhost --token-file {token_file}"

    def check(url: str, ping_options: str) -> int:
        here = command.replace(program, f"{sys.executable} -m tiekd_ros.cli").replace(address, url)
        return subprocess.run(
            ["/bin/sh", "-c", here],
            env=child_environment(PING_OPTIONS=ping_options),
            timeout=PATIENCE_S,
            check=False,
        ).returncode

    settings = {"tls_cert": made.cert, "tls_key": made.key, "token_file": token_file}
    with serving(StubBackend(), **{name: str(file) for name, file in settings.items()}) as url:
        assert check(url, options) == 0
        assert check(url, "") == 1
    assert check(url, options) == 1
