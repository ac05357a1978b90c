"""Certificates for tests of TLS: a server's, a client's, an expired one and a stranger's."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, fields
from pathlib import Path

import trustme

SERVER_NAMES = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Certificates:
    """Where each lies, PEM; every certificate's file holds it and its chain."""

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path
    expired_cert: Path
    expired_key: Path
    stranger_ca: Path
    stranger_cert: Path
    stranger_key: Path


def make_certificates(folder: Path) -> Certificates:
    """Make them anew.

    Args:
        folder: where they go; created where it is missing.

    Returns:
        `cert` is the server's, for `SERVER_NAMES`, and `expired_cert` the same one, expired
        yesterday; `client_cert` is a robot's. All three are signed by `ca`. A stranger's
        certificate is for the same names, but signed by `stranger_ca`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = Certificates(*(folder / f"{field.name}.pem" for field in fields(Certificates)))
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(paths.ca))
    stranger.cert_pem.write_to_path(str(paths.stranger_ca))
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    expired = authority.issue_cert(*SERVER_NAMES, not_before=now - 30 * day, not_after=now - day)
    robot = authority.issue_cert("robot@example.org", common_name="robot")
    _write(authority.issue_cert(*SERVER_NAMES), paths.cert, paths.key)
    _write(robot, paths.client_cert, paths.client_key)
    _write(expired, paths.expired_cert, paths.expired_key)
    _write(stranger.issue_cert(*SERVER_NAMES), paths.stranger_cert, paths.stranger_key)
    return paths


def _write(leaf: trustme.LeafCert, cert: Path, key: Path) -> None:
    cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(str(key))
    key.chmod(0o600)  # as a careful person would keep it; servers may refuse open ones
