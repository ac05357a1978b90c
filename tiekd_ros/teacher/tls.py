"""From when until when a server's certificate holds, and a watch on its end.

Python's `ssl` tells it only of a certificate that a peer has shown, so it is read here from the
file itself: DER (ITU-T X.690), with the fields of RFC 5280, section 4.1.
"""

from __future__ import annotations

import logging
import re
import ssl
import stat
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from tiekd_ros.core.errors import InvalidSettingError

_LOG = logging.getLogger(__name__)
_BEGIN = b"-----BEGIN "


def read_pem(path: str | Path, what: str) -> bytes:
    """Return the bytes of a PEM file.

    Args:
        path: the file.
        what: what it is, for the message: "the server's certificate".

    Raises:
        InvalidSettingError: it cannot be read, or is no PEM.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidSettingError(f"cannot read {what} {path}: {error.strerror}") from error
    if _BEGIN not in data:
        raise InvalidSettingError(
            f"{what} {path} is no PEM file: it has no line that begins with -----BEGIN"
        )
    return data


def check_pair(cert: str | Path, key: str | Path, what: str) -> None:
    """Check that a certificate and a private key belong together.

    gRPC itself would only say that it cannot open the port, or fail at each handshake.

    Raises:
        InvalidSettingError: they do not, the key is locked by a password, or either is damaged.
    """

    def no_password() -> str:
        raise InvalidSettingError(
            f"the private key {key} is locked by a password; give one that is not, readable by "
            "its owner alone"
        )

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, no_password)
    except (ssl.SSLError, OSError) as error:
        raise InvalidSettingError(
            f"{what} {cert} and the private key {key} do not work together: {error}"
        ) from error


def check_authorities(path: str | Path, what: str) -> None:
    """Check that a file holds certificates of authorities.

    Raises:
        InvalidSettingError: it holds none, or they are damaged.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(str(path))
    except (ssl.SSLError, OSError) as error:
        raise InvalidSettingError(f"{what} {path} holds no usable certificate: {error}") from error


def server_credentials(cert: str, key: str, client_ca: str = "") -> Any:
    """Return gRPC's credentials of a server.

    Args:
        cert: PEM file with the server's certificate, and those between it and its authority.
        key: PEM file with its private key.
        client_ca: PEM file with the authorities of clients' certificates; where it is given,
            a client without such a certificate is not let in (mutual TLS).

    Raises:
        InvalidSettingError: a file cannot be used, or the certificate does not hold today; the
            message says which and why.
    """
    import grpc

    what = "the server's certificate"
    pair = (read_pem(key, "the server's private key"), read_pem(cert, what))
    check_pair(cert, key, what)
    certificate_until(cert)
    if stat.S_IMODE(Path(key).stat().st_mode) & stat.S_IRWXO:
        _LOG.warning("everybody on this machine has access to the private key %s: chmod 600", key)
    authorities = None
    if client_ca:
        authorities = read_pem(client_ca, "the clients' authority")
        check_authorities(client_ca, "the clients' authority")
    return grpc.ssl_server_credentials(
        [pair], root_certificates=authorities, require_client_auth=bool(client_ca)
    )


_BLOCK = re.compile(
    r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----"
)  # further blocks, of keys for example, do not matter
_WARN_WITHIN = timedelta(days=30)
_LOOK_S = 86400.0
_VERSION, _UTC_TIME = 0xA0, 0x17  # tags


def certificate_until(path: str | Path) -> datetime:
    """Return when a server's certificate ends: the first of its file.

    Raises:
        InvalidSettingError: it has expired, does not hold yet, or a certificate of the file has no
            dates that can be read.
    """
    begin, end = _dates(path)[0]
    now = datetime.now(timezone.utc)
    if now < begin:
        raise InvalidSettingError(
            f"the certificate {path} does not hold yet: from {_text(begin)} on, and it is "
            f"{_text(now)} by this machine's clock; set the clock, or wait"
        )
    if now > end:
        raise InvalidSettingError(
            f"the certificate {path} has expired on {_text(end)} (it is {_text(now)} by this "
            "machine's clock), and no robot would take it; give a renewed one"
        )
    return end


def _dates(path: str | Path) -> list[tuple[datetime, datetime]]:
    """Return from when until when a file's certificates hold: the server's, then its chain's."""
    blocks = _BLOCK.findall(Path(path).read_text(encoding="latin-1"))
    try:
        if not blocks:
            raise ValueError("there is none")
        return [_validity(ssl.PEM_cert_to_DER_cert(block)) for block in blocks]
    except (ValueError, IndexError) as error:
        raise InvalidSettingError(f"{path} holds no certificate with dates: {error}") from error


class CertificateWatch:
    """Warns at the start, and each day, once a certificate's last 30 days have come.

    Of its chain's certificates too; an expired one among them need not matter, where robots know
    another way to an authority that they trust.
    """

    def __init__(self, path: str, look_s: float = _LOOK_S) -> None:
        """Look at the certificate that the server has now, every `look_s` seconds until `close`.

        Raises:
            InvalidSettingError: as `certificate_until`.
        """
        self.until = certificate_until(path)
        """When it ends."""
        self._chain = [end for _, end in _dates(path)[1:]]
        self._path = path
        self._closed = threading.Event()
        self._warn()
        threading.Thread(
            target=self._watch, args=(look_s,), name="teacher_certificate", daemon=True
        ).start()

    def close(self) -> None:
        """End the watch."""
        self._closed.set()

    def left_s(self) -> float:
        """Return the seconds that the certificate still holds; negative once it has expired."""
        return (self.until - datetime.now(timezone.utc)).total_seconds()

    def _watch(self, look_s: float) -> None:
        while not self._closed.wait(look_s):
            self._warn()

    def _warn(self) -> None:
        _warn_of_end(f"the certificate {self._path}", self.until)
        for number, end in enumerate(self._chain, 2):
            _warn_of_end(f"certificate {number} of {self._path}, of its chain,", end)


def _warn_of_end(what: str, until: datetime) -> None:
    left = until - datetime.now(timezone.utc)
    if left < _WARN_WITHIN:
        state = "has expired" if left < timedelta(0) else "expires"
        _LOG.warning("%s %s on %s; renew it, and start the server again", what, state, _text(until))


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _validity(der: bytes) -> tuple[datetime, datetime]:
    """Return from when until when a certificate holds."""
    _, body = _elements(_elements(der)[0][1])[0]  # Certificate, TBSCertificate
    fields = _elements(body)
    if fields[0][0] == _VERSION:
        del fields[0]
    _, validity = fields[3]  # behind serial number, algorithm and issuer
    begin, end = (_moment(*each) for each in _elements(validity))
    return begin, end


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """Return tag and content of each DER element in `data`."""
    found, at = [], 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:  # the length's own length
            end = at + (length & 0x7F)
            length, at = int.from_bytes(data[at:end], "big"), end
        found.append((tag, data[at : at + length]))
        at += length
    return found


def _moment(tag: int, text: bytes) -> datetime:
    digits = text.decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: up to 49 in this century, else in the last
        digits = ("20" if digits < "5" else "19") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)
