"""Where the teacher is, and how patiently it is asked."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.settings import Settings, setting

_URL = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+):[0-9]{1,5}")


@dataclass(frozen=True)
class ClientSettings(Settings):
    """Where the teacher is, how it is told from others, and how patiently it is asked."""

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
        False, "send the token without TLS also to another machine: whoever listens can use it"
    )
    timeout_s: float = setting(20.0, "deadline of one try", unit="s", minimum=0.01, maximum=3600.0)
    attempts: int = setting(
        3, "tries a request gets before the teacher counts as unreachable", minimum=1, maximum=1000
    )
    backoff_initial_s: float = setting(
        0.2,
        "pause after the first failed try; it doubles with each",
        unit="s",
        minimum=0.0,
        maximum=60.0,
    )
    backoff_max_s: float = setting(
        5.0, "longest pause between two tries", unit="s", minimum=0.0, maximum=600.0
    )
    break_after: int = setting(
        3,
        "requests in a row without an answer after which the teacher is only probed, by one "
        "request at a time",
        minimum=1,
        maximum=1000,
    )
    break_initial_s: float = setting(
        1.0, "time to the first probe; it doubles with each", unit="s", minimum=0.001,
        maximum=3600.0,
    )  # fmt: skip
    break_max_s: float = setting(
        30.0, "longest time between two probes", unit="s", minimum=0.001, maximum=3600.0
    )
    in_flight: int = setting(
        2, "requests on their way at the same time; more callers wait", minimum=1, maximum=64
    )
    max_message_mb: int = setting(
        64, "largest message of either direction", unit="MiB", minimum=1, maximum=1024
    )

    def check(self) -> None:
        """Check the address, the order of the pauses, and what TLS needs."""
        fits = _URL.fullmatch(self.url) and int(self.url.rpartition(":")[2]) <= 65535
        if self.url and not fits:
            raise InvalidSettingError(
                f"url must be host:port without a scheme, such as 192.168.1.20:8001, got "
                f"{self.url!r}"
            )
        for kind in ("backoff", "break"):
            least, most = getattr(self, f"{kind}_initial_s"), getattr(self, f"{kind}_max_s")
            if most < least:
                raise InvalidSettingError(
                    f"{kind}_max_s must be at least {kind}_initial_s = {least:g}, got {most:g}"
                )
        self._check_tls()

    @property
    def host(self) -> str:
        """The url's host, without the brackets of an IPv6 address."""
        return self.url.rpartition(":")[0].strip("[]")

    def _check_tls(self) -> None:
        given = [name for name in ("ca", "cert", "key", "server_name") if getattr(self, name)]
        if given and not self.tls:
            raise InvalidSettingError(
                f"{given[0]} is set, but tls is off, so that it would not be used; set tls to true"
            )
        if bool(self.cert) != bool(self.key):
            raise InvalidSettingError(
                f"cert and key belong together, got cert {self.cert!r} and key {self.key!r}"
            )
