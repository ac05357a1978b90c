"""Settings of the teacher's server and client."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import Settings, setting


@dataclass(frozen=True)
class ServiceSettings(Settings):
    """Settings of the answers: batches, limits of requests, number type."""

    workers: int = setting(
        1, "batches that the backend labels at the same time", minimum=1, maximum=64
    )
    max_batch: int = setting(
        8,
        "images of one size that go through the backend together, where it can; 1 = never",
        minimum=1,
        maximum=1024,
    )
    batch_delay_ms: float = setting(
        5.0,
        "how long an image waits for others to make a batch with, while the backend is idle",
        unit="ms",
        minimum=0.0,
        maximum=10000.0,
    )
    max_waiting: int = setting(
        128,
        "requests that may wait for the backend; more are told to come back",
        minimum=0,
        maximum=1024,
    )
    max_waiting_mb: int = setting(
        1024,
        "memory that the requests inside may take together, as they came and decoded; more are "
        "told to come back",
        unit="MiB",
        minimum=1,
        maximum=1 << 20,
    )
    max_pixels: int = setting(
        16_000_000, "largest image that is decoded", unit="pixels", minimum=1, maximum=1 << 30
    )
    max_image_mb: int = setting(
        16, "largest encoded image that is read", unit="MiB", minimum=1, maximum=1024
    )
    stuck_after_s: float = setting(
        300.0,
        "a batch that takes longer means that the backend hangs: the server is not ready then, and "
        "systemd, where it watches, starts it again",
        unit="s",
        minimum=1.0,
        maximum=86400.0,
    )
    depth_type: str = setting(
        "FP16", "number type of the depth on the wire", choices=("FP16", "FP32")
    )


@dataclass(frozen=True)
class ServerSettings(ServiceSettings):
    """Settings of a server: address, access, limits of connections, metrics."""

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

    def missing_access_control(self, has_tokens: bool) -> str:
        """Return what access control lacks, for people; empty where only this machine gets in.

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

    def require_access_control(self, has_tokens: bool) -> None:
        """Refuse to be open to other machines.

        Args:
            has_tokens: whether the server asks for a token.

        Raises:
            InvalidSettingError: other machines would reach a server without TLS or tokens, and
                `insecure` was not said.
        """
        lacking = self.missing_access_control(has_tokens)
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


TLS_SETTINGS = ("ca", "cert", "key", "server_name")
"""Those of `ClientSettings` that only TLS uses."""
_URL = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+):[0-9]{1,5}")


@dataclass(frozen=True)
class ClientSettings(Settings):
    """Where the teacher is, and how client and teacher know each other."""

    url: str = setting(
        "127.0.0.1:8001", "the teacher server, as host:port; empty where there is none"
    )
    pin: str = setting(
        "",
        "the only teacher whose labels are taken, as `name` or `name version`; empty = any metric "
        "one. Frames wait while another answers",
    )
    tls: bool = setting(False, "encrypt, and let the server prove who it is")
    ca: str = setting(
        "", "PEM file with the authority of the server's certificate; empty = those of the system"
    )
    cert: str = setting("", "PEM file with this robot's certificate, for mutual TLS")
    key: str = setting("", "PEM file with the private key of that certificate")
    server_name: str = setting(
        "", "name in the server's certificate, where it is another than the url's host"
    )
    token_file: str = setting(
        "",
        "file with the token that the server wants, closed to others; empty = the environment "
        "variable TIEKD_TEACHER_TOKEN, or none",
    )
    plaintext_token: bool = setting(
        False, "send the token without TLS also to another machine: any listener can use it"
    )
    timeout_s: float = setting(20.0, "deadline of one call", unit="s", minimum=0.01, maximum=3600.0)
    max_message_mb: int = setting(
        64, "largest message of either direction", unit="MiB", minimum=1, maximum=1024
    )

    def check(self) -> None:
        """Check the address, and what TLS needs."""
        fits = _URL.fullmatch(self.url) and int(self.url.rpartition(":")[2]) <= 65535
        if self.url and not fits:
            raise InvalidSettingError(
                f"url must be host:port without a scheme, such as 192.168.1.20:8001, got "
                f"{self.url!r}"
            )
        given = [name for name in TLS_SETTINGS if getattr(self, name)]
        if given and not self.tls:
            raise InvalidSettingError(
                f"{given[0]} is set, but tls is off, so that it would not be used; set tls to true"
            )
        if bool(self.cert) != bool(self.key):
            raise InvalidSettingError(
                f"cert and key belong together, got cert {self.cert!r} and key {self.key!r}"
            )

    @property
    def host(self) -> str:
        """The url's host, without the brackets of an IPv6 address."""
        return self.url.rpartition(":")[0].strip("[]")
