"""Topics that might be meant: which of those that are published could serve, the nearest first."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from tiekd_ros.doctor.facts import RosFacts

_OWN_OUTPUTS = ("depth", "depth/preview", "confidence", "camera_info")
_AT_MOST = 3


def candidates(ros: RosFacts, kinds: Iterable[str], name: str) -> list[str]:
    """Return the published topics of these types, but for our own, those like `name` first."""
    spaces = {ros.namespace, *map(namespace_of, ros.depth_nodes_elsewhere)}
    own = {f"{space.rstrip('/')}/{each}" for space in spaces for each in _OWN_OUTPUTS}
    own |= set(ros.made)
    found = [n for n, types in ros.published.items() if set(types) & set(kinds) and n not in own]

    def likeness(other: str) -> float:
        return difflib.SequenceMatcher(None, name, other).ratio()

    return sorted(found, key=lambda other: (-likeness(other), other))


def namespace_of(full_name: str) -> str:
    """Return where a node is."""
    return full_name.rpartition("/")[0] or "/"


def listed(names: list[str]) -> str:
    """Return the first few names."""
    more = len(names) - _AT_MOST
    return ", ".join(names[:_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def domains_in_words(domains: Iterable[int]) -> str:
    """Return the numbers of domains, such as `domains 0, 5`; empty where there are none."""
    found = [str(each) for each in sorted(domains)]
    return f"domain{'s' if len(found) > 1 else ''} {', '.join(found)}" if found else ""


def start_with(option: str, value: str) -> str:
    """Say how the nodes are started with an argument, such as image_topic."""
    flag = option.replace("_", "-")
    return f"start the nodes with {option}:={value} (tiekd up --{flag} {value})"
