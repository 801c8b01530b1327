"""The pictures of docs/attention.md: every point is where its figures say."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from bench.attention.picture import draw

from statepool.sim.plot import HEIGHT, LEFT, TOP, WIDTH


def test_a_line_for_each_kind_through_its_points():
    lines = {"one": [(0.0, 0.0), (5.0, 50.0), (10.0, 100.0)], "other": [(10.0, 0.0)]}
    picture = ET.fromstring(draw([("x", "y", 10.0, 100.0, lines)]))
    tag = "{http://www.w3.org/2000/svg}"
    found = [line.get("points") for line in picture.iter(tag + "polyline")]
    corners = [f"{LEFT + x * WIDTH:.1f},{TOP + (1 - y) * HEIGHT:.1f}" for x, y in ((0, 0), (0.5, 0.5), (1, 1), (1, 0))]
    assert found == [" ".join(corners[:3]), corners[3]]
    texts = [text.text for text in picture.iter(tag + "text")]
    assert {"x", "y", "one", "other"} <= set(texts)
