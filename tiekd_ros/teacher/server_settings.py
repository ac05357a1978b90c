"""Where a teacher server listens, whom it lets in, and its limits."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.settings import setting
from tiekd_ros.teacher.service_settings import ServiceSettings


@dataclass(frozen=True)
class ServerSettings(ServiceSettings):
    """Where the server listens, whom it lets in, and its limits."""

    host: str = setting(
        "127.0.0.1",
        "address to listen on; one that other machines reach, 0.0.0.0 for example, needs TLS and "
        "a token",
    )
    port: int = setting(0, "port to listen on; 0 takes any free one", minimum=0, maximum=65535)
    tls_cert: str = setting(
        "", "PEM file of the server's certificate, and of those between it and its authority"
    )
    tls_key: str = setting("", "PEM file of the certificate's private key")
    client_ca: str = setting(
        "",
        "PEM file of the authorities of clients' certificates; where given, a client needs such a "
        "certificate (mutual TLS)",
    )
    token_file: str = setting(
        "",
        "file of the tokens that let clients in, one a line; without it they come from the "
        "environment variable TIEKD_TEACHER_TOKENS, where it is set",
    )
    insecure: bool = setting(
        False, "listen where other machines reach the server even without TLS or without a token"
    )
    max_message_mb: int = setting(
        32, "largest message that is received", unit="MiB", minimum=1, maximum=1024
    )
    max_connections: int = setting(
        512, "connections at the same time; more are closed at once", minimum=1, maximum=65535
    )
    max_idle_s: float = setting(
        60.0,
        "a connection without a request for so long is closed; the next request opens another",
        unit="s",
        minimum=1.0,
        maximum=86400.0,
    )
    receive_timeout_s: float = setting(
        30.0,
        "time in which a request must have come, once its call has begun",
        unit="s",
        minimum=0.1,
        maximum=3600.0,
    )
    grace_s: float = setting(
        10.0,
        "time that running requests get when the server stops",
        unit="s",
        minimum=0.0,
        maximum=600.0,
    )
    metrics_port: int = setting(
        0, "port of the metrics for Prometheus; 0 = none", minimum=0, maximum=65535
    )
    metrics_host: str = setting(
        "127.0.0.1",
        "address of the metrics; everybody who reaches it reads them, so only a network you trust",
    )

    def check(self) -> None:
        """Check that what makes TLS comes together, and that an image fits into a message."""
        if self.max_message_mb <= self.max_image_mb:
            raise InvalidSettingError(
                f"max_message_mb must be larger than max_image_mb = {self.max_image_mb}, for a "
                f"message holds the image and more; got {self.max_message_mb}"
            )
        if bool(self.tls_cert) != bool(self.tls_key):
            given, lacking = ("tls_cert", "tls_key") if self.tls_cert else ("tls_key", "tls_cert")
            raise InvalidSettingError(f"{given} needs {lacking} as well: TLS takes both")
        if self.client_ca and not self.tls_cert:
            raise InvalidSettingError(
                "client_ca needs tls_cert and tls_key as well: clients show certificates only to a "
                "server that has one"
            )

    @property
    def address(self) -> str:
        """Return host:port as gRPC writes it, [host]:port for IPv6."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def lacks(self, has_tokens: bool) -> str:
        """Say what keeps strangers out and is not there; empty where only this machine gets in.

        Args:
            has_tokens: whether the server asks for a token.
        """
        if is_loopback(self.host):
            return ""
        needed = {
            "TLS (--tls-cert, --tls-key)": bool(self.tls_cert),
            "token (--token-file)": has_tokens,
        }
        return " and no ".join(name for name, there in needed.items() if not there)

    def require_closed_door(self, has_tokens: bool) -> None:
        """Refuse to let strangers in.

        Args:
            has_tokens: whether the server asks for a token.

        Raises:
            InvalidSettingError: other machines would reach a server without TLS or tokens, and
                `insecure` was not said.
        """
        lacking = self.lacks(has_tokens)
        if lacking and not self.insecure:
            raise InvalidSettingError(
                f"{self.host} can be reached from other machines, and the server has no {lacking}; "
                "give that, listen on 127.0.0.1, or say --insecure where you trust the whole "
                "network"
            )


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address; a name counts by all it stands for."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(ipaddress.ip_address(str(a)).is_loopback for a in found)
