"""Which programs with ROS run on this machine, as the system has it: by the ports that they hold.

It is known at once and without ROS, so it tells a program that the graph does not show yet from
one that is not there. Ports by the DDS specification (DDSI-RTPS 2.5, 9.6.2): each domain has a
range of them, whose first is shared by all participants that look beyond this machine, and of
which each participant holds a pair. With its transports LARGE_DATA, Fast DDS holds only one of the
two: the pair where it is kept to this machine, else the shared one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

_TABLES = (Path("/proc/net/udp"), Path("/proc/net/udp6"))
_OWN = Path("/proc/self/fd")
_PORT, _INODE = 1, 9
_BASE, _DOMAIN_GAIN, _FIRST_UNICAST, _PAIR = 7400, 250, 10, 2
_LAST_DOMAIN = 101
"""Above it lie the ports that the system lends to anybody."""


def programs_by_domain(tables: Iterable[Path] = _TABLES) -> dict[int, int]:
    """Return how many DDS participants this machine has in each domain, at least, but our own.

    Nothing where the system does not tell. A container sees those of its own network only.
    """
    own = _own_sockets()
    ports = [port for table in tables for port, inode in _sockets(table) if inode not in own]
    shared, pairs = Counter[int](), Counter[int]()
    for port in ports:
        domain, offset = divmod(port - _BASE, _DOMAIN_GAIN)
        if not 0 <= domain <= _LAST_DOMAIN:
            continue
        if offset == 0:
            shared[domain] += 1
        # One such port alone is another program's, as VXLAN's 8472 is.
        elif offset >= _FIRST_UNICAST and offset % _PAIR == 0 and port + 1 in ports:
            pairs[domain] += 1
    return dict(shared | pairs)  # a participant may be in both


def is_kept_to_this_machine(environment: Mapping[str, str]) -> bool:
    """Return whether ROS looks for nobody on other machines."""
    local = _range(environment) == "LOCALHOST" or environment.get("ROS_LOCALHOST_ONLY") == "1"
    away = ("ROS_STATIC_PEERS", "ROS_DISCOVERY_SERVER")
    return local and not any(environment.get(name) for name in away)


def is_off(environment: Mapping[str, str]) -> bool:
    """Return whether ROS looks for nobody at all."""
    return _range(environment) == "OFF"


def _range(environment: Mapping[str, str]) -> str:
    return environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "").upper()


def _own_sockets() -> set[str]:
    found = set()
    for each in _OWN.iterdir() if _OWN.exists() else ():
        try:
            found.add(os.readlink(each).removeprefix("socket:[").removesuffix("]"))
        except OSError:  # closed meanwhile
            continue
    return found


def _sockets(table: Path) -> list[tuple[int, str]]:
    """Return the port and the inode of each."""
    try:
        lines = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [(int(line[_PORT].rpartition(":")[2], 16), line[_INODE]) for line in lines]
