"""TLS files and tokens of either end, checked before gRPC sees them; the certificate's dates."""

from __future__ import annotations

import ipaddress
import logging
import ssl
import stat
import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc

from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.teacher.security import AUTHORIZATION, read_tokens
from tiekd_ros.teacher.settings import ClientSettings

TOKEN_VARIABLE = "TIEKD_TEACHER_TOKEN"


@dataclass(frozen=True)
class Credentials:
    """What one connection carries; printing it shows no secret."""

    headers: dict[str, str] = field(default_factory=dict, repr=False)
    """Metadata of every call."""
    channel: Any = None
    """gRPC's channel credentials; None = no TLS."""
    server_name: str = ""
    """Name in the server's certificate; empty = the url's host."""


def read_credentials(settings: ClientSettings) -> Credentials:
    """Read token and certificates as they are now.

    Raises:
        InvalidSettingError: a file cannot be used; or a token would travel unencrypted to
            another machine, which `plaintext_token` has to allow.
    """
    token = _read_token(settings)
    if token and not (settings.tls or settings.plaintext_token or _is_local(settings.host)):
        raise InvalidSettingError(
            f"the token would travel to {settings.url} for everybody to read: set teacher.tls to "
            "true, with teacher.ca, or teacher.plaintext_token to true on a network that you trust"
        )
    headers = {AUTHORIZATION: f"Bearer {token}"} if token else {}
    channel = _channel_credentials(settings) if settings.tls else None
    return Credentials(headers, channel, settings.server_name)


def _read_token(settings: ClientSettings) -> str:
    tokens = read_tokens(settings.token_file, TOKEN_VARIABLE)
    if len(tokens) > 1:
        source = settings.token_file or TOKEN_VARIABLE
        raise InvalidSettingError(
            f"{source} holds {len(tokens)} tokens; a robot sends one, so leave the one that is its "
            "own"
        )
    return tokens[0] if tokens else ""


def _channel_credentials(settings: ClientSettings) -> Any:
    authorities, key, chain = None, None, None
    if settings.ca:
        authorities = _read_authorities(settings.ca, "the server's authority")
    if settings.cert:
        key, chain = _read_pair(settings.cert, settings.key, "this robot's")
    return grpc.ssl_channel_credentials(authorities, key, chain)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


_LOG = logging.getLogger(__name__)
_BEGIN = b"-----BEGIN "
_WARN_WITHIN = timedelta(days=30)
_CHECK_EVERY_S = 86400.0


def _read_pem(path: str, what: str) -> bytes:
    """Return the bytes of a PEM file; `what` it is stands in the message where it is none."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidSettingError(f"cannot read {what} {path}: {error.strerror}") from error
    if _BEGIN not in data:
        raise InvalidSettingError(
            f"{what} {path} is no PEM file: it has no line that begins with -----BEGIN"
        )
    return data


def _read_pair(cert: str, key: str, whose: str) -> tuple[bytes, bytes]:
    """Return a private key and its certificate, which belong together.

    gRPC itself would only say that it cannot open the port, or fail at each handshake.

    Raises:
        InvalidSettingError: they do not, the key is locked by a password, or either is damaged.
    """

    def no_password() -> str:
        raise InvalidSettingError(
            f"the private key {key} is locked by a password; give one that is not, readable by "
            "its owner alone"
        )

    pair = _read_pem(key, f"{whose} private key"), _read_pem(cert, f"{whose} certificate")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, no_password)
    except (ssl.SSLError, OSError) as error:
        raise InvalidSettingError(
            f"{whose} certificate {cert} and the private key {key} do not work together: {error}"
        ) from error
    return pair


def _read_authorities(path: str, what: str) -> bytes:
    """Return the certificates of authorities; refuse a file without usable ones."""
    data = _read_pem(path, what)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        raise InvalidSettingError(f"{what} {path} holds no usable certificate: {error}") from error
    return data


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
    pair = _read_pair(cert, key, "the server's")
    certificate_until(cert)
    if stat.S_IMODE(Path(key).stat().st_mode) & stat.S_IRWXO:
        _LOG.warning("everybody on this machine has access to the private key %s: chmod 600", key)
    authorities = None
    if client_ca:
        authorities = _read_authorities(client_ca, "the clients' authority")
    return grpc.ssl_server_credentials(
        [pair], root_certificates=authorities, require_client_auth=bool(client_ca)
    )


def certificate_until(path: str | Path) -> datetime:
    """Return when a server's certificate ends: the first of its file.

    Raises:
        InvalidSettingError: it has expired, does not hold yet, or the file has no certificate.
    """
    begin, end = _validities(path)[0]
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


def _validities(path: str | Path) -> list[tuple[datetime, datetime]]:
    """Return from when until when a file's certificates hold: the server's, then its chain's."""
    try:  # not at the top: a robot's client uses this file without a certificate of its own
        from cryptography.x509 import load_pem_x509_certificates
    except ImportError as error:
        raise TiekdError(
            "TLS needs the package cryptography: pip install 'tiekd_ros[teacher]'"
        ) from error
    try:
        chain = load_pem_x509_certificates(Path(path).read_bytes())
    except ValueError as error:
        raise InvalidSettingError(f"{path} holds no certificate with dates: {error}") from error
    return [(each.not_valid_before_utc, each.not_valid_after_utc) for each in chain]


class CertificateWatch:
    """Warns at the start, and each day, once a certificate's last 30 days have come.

    Of its chain's certificates too; an expired one among them need not matter, where robots know
    another way to an authority that they trust.
    """

    def __init__(self, path: str, check_every_s: float = _CHECK_EVERY_S) -> None:
        """Check the file as it is now, then its dates every `check_every_s` seconds until `close`.

        Raises:
            InvalidSettingError: as `certificate_until`.
        """
        self.until = certificate_until(path)
        """When the server's own certificate ends."""
        self._ends = {f"the certificate {path}": self.until}
        for number, (_, end) in enumerate(_validities(path)[1:], 2):
            self._ends[f"certificate {number} of {path}, of its chain,"] = end
        self._closed = threading.Event()
        self._warn()
        threading.Thread(
            target=self._run, args=(check_every_s,), name="teacher_certificate", daemon=True
        ).start()

    def close(self) -> None:
        """End the watch."""
        self._closed.set()

    def left_s(self) -> float:
        """Return the seconds that the certificate still holds; negative once it has expired."""
        return (self.until - datetime.now(timezone.utc)).total_seconds()

    def _run(self, check_every_s: float) -> None:
        while not self._closed.wait(check_every_s):
            self._warn()

    def _warn(self) -> None:
        now = datetime.now(timezone.utc)
        for certificate, end in self._ends.items():
            if end - now < _WARN_WITHIN:
                _LOG.warning(
                    "%s %s on %s; renew it, and start the server again",
                    certificate, "has expired" if end < now else "expires", _text(end),
                )  # fmt: skip


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
