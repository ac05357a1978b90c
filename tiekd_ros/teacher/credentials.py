"""How a robot shows who it is, and knows its teacher: token and certificates."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.teacher.security import AUTHORIZATION, read_tokens
from tiekd_ros.teacher.settings import ClientSettings
from tiekd_ros.teacher.tls import check_authorities, check_pair, read_pem

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
    import grpc

    authorities, key, chain = None, None, None
    if settings.ca:
        authorities = read_pem(settings.ca, "the server's authority")
        check_authorities(settings.ca, "the server's authority")
    if settings.cert:
        what = "this robot's certificate"
        chain = read_pem(settings.cert, what)
        key = read_pem(settings.key, "this robot's private key")
        check_pair(settings.cert, settings.key, what)
    return grpc.ssl_channel_credentials(authorities, key, chain)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
