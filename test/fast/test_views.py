"""The files for RViz, Foxglove and SROS2 are what these programs read."""

from __future__ import annotations

import math

from helpers.views import OPERATOR, foxglove, policy, profiles, rviz
from tiekd_ros.nodes.common.parameter_groups import NODE_SETTINGS


def test_rviz_looks_along_the_camera_in_its_own_frame():
    manager = rviz()["Visualization Manager"]
    frame = NODE_SETTINGS["camera_node"][""]().frame_id
    assert manager["Global Options"]["Fixed Frame"] == frame
    view = manager["Views"]["Current"]
    assert view["Class"] == "rviz_default_plugins/Orbit"
    assert -math.pi / 2 < view["Pitch"] < 0  # from behind: the optical frame's Z looks forward


def test_every_display_is_one_of_rviz2_and_takes_any_publisher():
    manager = rviz()["Visualization Manager"]
    for display in manager["Displays"]:
        assert display["Class"].startswith("rviz_default_plugins/")
        assert display["Value"] == display["Enabled"]
        if "Topic" in display:
            assert display["Topic"]["Reliability Policy"] == "Best Effort"
            assert display["Topic"]["Durability Policy"] == "Volatile"
    for part in manager["Tools"]:
        assert part["Class"].startswith("rviz_default_plugins/")
    (points,) = [d for d in manager["Displays"] if d["Class"].endswith("/PointCloud2")]
    assert points["Color Transformer"] == "RGB8"


def panels_of(layout):
    if isinstance(layout, str):
        return [layout]
    assert layout["direction"] in ("row", "column")
    return [*panels_of(layout["first"]), *panels_of(layout["second"])]


def test_every_panel_of_the_foxglove_layout_has_its_place_and_its_settings():
    layout = foxglove()
    panels = panels_of(layout["layout"])
    assert sorted(panels) == sorted(layout["configById"])
    assert all("!" in panel for panel in panels)


def test_the_policy_has_an_enclave_for_each_node_and_one_for_people():
    assert policy().attrib == {"version": "0.2.0"}
    assert set(profiles()) == {f"/tiekd/{name}" for name in (*NODE_SETTINGS, OPERATOR)}
    for path, profile in profiles().items():
        assert path.endswith(f"/{profile.node}")


def test_no_node_may_do_everything():
    for path, profile in profiles().items():
        if not path.endswith(OPERATOR):
            names = profile.publish | profile.subscribe | profile.reply | profile.request
            assert not any("*" in name for name in names)
