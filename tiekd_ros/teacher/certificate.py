"""From when until when a server's certificate holds, and a watch on its end.

Python's `ssl` tells it only of a certificate that a peer has shown, so it is read here from the
file itself: DER (ITU-T X.690), with the fields of RFC 5280, section 4.1.
"""

from __future__ import annotations

import logging
import re
import ssl
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

from tiekd_ros.errors import InvalidSettingError

_LOG = logging.getLogger(__name__)
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
