"""TLS of the teacher's wire: PEM files in, gRPC credentials out. For both ends."""

from __future__ import annotations

import logging
import ssl
import stat
from pathlib import Path
from typing import Any

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.teacher.certificate import certificate_until

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
