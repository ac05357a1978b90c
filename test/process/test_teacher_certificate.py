"""The dates of the server's certificate: refused, warned of and shown."""

from __future__ import annotations

import datetime
import logging
import urllib.request
from contextlib import closing

import pytest
import trustme

from helpers.certificates import Certificates, make_certificates
from helpers.children import wait_until
from helpers.teachers import StubBackend, free_port, serving
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.settings import ServerSettings
from tiekd_ros.teacher.tls import CertificateWatch, certificate_until

DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def issue(folder, begin: datetime.timedelta, end: datetime.timedelta) -> tuple[str, str]:
    """Write a certificate that holds from `begin` until `end` from now; returns it and its key."""
    now = datetime.datetime.now(datetime.timezone.utc)
    leaf = trustme.CA().issue_cert("localhost", not_before=now + begin, not_after=now + end)
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(leaf.cert_chain_pems[0].bytes())
    key.write_bytes(leaf.private_key_pem.bytes())
    key.chmod(0o600)
    return str(cert), str(key)


@pytest.mark.parametrize(
    ("begin", "end", "words"),
    [(-3 * DAY, -DAY, "has expired on "), (2 * DAY, 9 * DAY, "does not hold yet: from ")],
)
def test_one_that_does_not_hold_today_stops_the_start_with_its_date(tmp_path, begin, end, words):
    cert, key = issue(tmp_path, begin, end)
    date = datetime.datetime.now(datetime.timezone.utc) + (end if end < 0 * DAY else begin)
    with pytest.raises(InvalidSettingError, match=f"{words}{date:%Y-%m-%d}"):
        TeacherServer(StubBackend(), ServerSettings(tls_cert=cert, tls_key=key)).start()


@pytest.mark.parametrize("days", [9, 400, 365 * 30])
def test_its_end_is_read_from_the_file(tmp_path, days):
    """Beyond 2049 dates are written in another way."""
    cert, _ = issue(tmp_path, -DAY, days * DAY)
    left = certificate_until(cert) - datetime.datetime.now(datetime.timezone.utc)
    assert abs(left - days * DAY) < datetime.timedelta(minutes=5)


def test_an_expired_one_of_its_chain_is_warned_of_and_does_not_stop_the_start(
    tmp_path, certificates, caplog
):
    own, old = certificates.cert.read_bytes(), certificates.expired_cert.read_bytes()
    chain = tmp_path / "chain.pem"
    chain.write_bytes(own + old)
    with caplog.at_level(logging.WARNING), closing(CertificateWatch(str(chain))) as watch:
        assert watch.until == certificate_until(certificates.cert)
    (words,) = caplog.messages
    assert words.startswith(f"certificate 2 of {chain}, of its chain, has expired on ")
    chain.write_bytes(old + own)
    with pytest.raises(InvalidSettingError, match="expired"):
        certificate_until(chain)


def test_garbage_has_no_dates(tmp_path):
    file = tmp_path / "cert.pem"
    file.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(InvalidSettingError, match="no certificate with dates"):
        certificate_until(file)


def test_its_last_30_days_are_warned_of_at_the_start_and_again_and_again(tmp_path, caplog):
    cert, _ = issue(tmp_path, -DAY, 29 * DAY)
    with (
        caplog.at_level(logging.WARNING),
        closing(CertificateWatch(cert, check_every_s=3600)) as watch,
    ):
        assert len(caplog.messages) == 1
        assert f"{cert} expires on {watch.until:%Y-%m-%d}" in caplog.text
    with closing(CertificateWatch(cert, check_every_s=0.01)):
        wait_until(lambda: len(caplog.messages) > 3)


def test_a_fresh_one_is_not_warned_of_and_the_metrics_show_how_long_it_holds(certificates, caplog):
    port = free_port()
    tls = {"tls_cert": str(certificates.cert), "tls_key": str(certificates.key)}
    with caplog.at_level(logging.WARNING), serving(StubBackend(), **tls, metrics_port=port):
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    (line,) = [each for each in text.splitlines() if each.startswith("tiekd_teacher_certificate")]
    name, left = line.split()
    assert name == "tiekd_teacher_certificate_left_seconds"
    until = certificate_until(certificates.cert)
    assert float(left) == pytest.approx(
        until.timestamp() - datetime.datetime.now().timestamp(), abs=60
    )
    assert "certificate" not in caplog.text
