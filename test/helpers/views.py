"""What stands in config/ for people and other programs: RViz, Foxglove, SROS2."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).resolve().parents[2] / "config"
OPERATOR = "operator"


def rviz() -> dict[str, Any]:
    return yaml.safe_load((CONFIG / "tiekd.rviz").read_text())


def rviz_topics() -> set[str]:
    displays = rviz()["Visualization Manager"]["Displays"]
    return {display["Topic"]["Value"] for display in displays if "Topic" in display}


def foxglove() -> dict[str, Any]:
    return json.loads((CONFIG / "tiekd_foxglove.json").read_text())


def foxglove_names() -> tuple[set[str], set[str]]:
    """Return the topics and the services that the layout names."""
    topics: set[str] = set()
    services: set[str] = set()
    for panel in foxglove()["configById"].values():
        topics |= set(panel.get("topics", {}))
        topics |= set(panel.get("imageMode", {}).values())
        topics |= {panel[key] for key in ("topicToRender", "topicPath") if key in panel}
        services |= {panel["serviceName"]} if "serviceName" in panel else set()
    return topics, services


@dataclass
class Profile:
    """What an enclave of the policy allows, by full names."""

    namespace: str
    node: str
    publish: set[str] = field(default_factory=set)
    subscribe: set[str] = field(default_factory=set)
    reply: set[str] = field(default_factory=set)
    request: set[str] = field(default_factory=set)


def policy() -> ElementTree.Element:
    return ElementTree.parse(CONFIG / "sros2" / "policy.xml").getroot()


def profiles() -> dict[str, Profile]:
    """Return the policy's profiles by enclave, names resolved as sros2 does it."""
    found = {}
    for enclave in policy().findall("enclaves/enclave"):
        (element,) = enclave.findall("profiles/profile")
        profile = Profile(element.attrib["ns"], element.attrib["node"])
        for rules in element:
            names = {_resolve(rule.text or "", profile) for rule in rules}
            for verb, qualifier in rules.attrib.items():
                assert qualifier == "ALLOW"
                getattr(profile, verb).update(names)
        found[enclave.attrib["path"]] = profile
    return found


def _resolve(name: str, profile: Profile) -> str:
    if name.startswith("/"):
        return name
    base = profile.namespace.rstrip("/")
    return f"{base}/{profile.node}{name[1:]}" if name.startswith("~") else f"{base}/{name}"
