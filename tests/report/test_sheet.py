"""The picture of a scan: every group, its points where they belong, and nothing that it needs from outside."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import secateur as sc
from secateur.report.schema import CurveData
from secateur.report.sheet import HEAD, HEIGHT, WIDTH, curve_sheet

SVG = "{http://www.w3.org/2000/svg}"


def curve(name: str, damage: list[float | None]) -> CurveData:
    error = [None if d is None else 0.1 for d in damage]
    return CurveData(
        group=name, granularity="channel", sparsities=[0, 0.5, 0.9], damage=damage, standard_error=error
    )  # fmt: skip


def test_every_group_has_a_panel_on_one_scale() -> None:
    names = ["a", "<b> & c", "d", "e", "f"]
    text = curve_sheet([curve(n, [0, k, 2 * k]) for k, n in enumerate(names)], "loss", share=False, tolerance=1.0)
    root = ElementTree.fromstring(text)
    assert root.get("viewBox") == f"0 0 {4 * WIDTH} {HEAD + 2 * HEIGHT}"
    panels = root.findall(f"{SVG}g")
    assert [p.find(f"{SVG}text").text for p in panels] == names
    assert panels[4].get("transform") == f"translate(0,{HEAD + HEIGHT})"
    heights = [[float(c.get("cy")) for c in p.findall(f"{SVG}circle")] for p in panels]
    # The last point of "d" is as high as that of damage 4, "e" at its middle is half as high: one scale.
    assert heights[2][2] == pytest.approx(heights[4][1])
    zero = heights[0][0]
    assert zero - heights[4][2] == pytest.approx(2 * (zero - heights[4][1]), abs=0.02)
    assert len(root.findall(f".//{SVG}polygon")) == 5 and len(root.findall(f".//{SVG}line[@class='limit']")) == 5
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_what_is_infinite_is_said_and_not_drawn() -> None:
    root = ElementTree.fromstring(curve_sheet([curve("a", [0, 1.0, None])], "loss", share=False))
    assert len(root.findall(f".//{SVG}circle")) == 2
    assert "1 infinite" in [t.text for t in root.iter(f"{SVG}text")]


def test_a_scan_is_drawn_to_a_file_and_any_metric_of_it(tmp_path: Path) -> None:
    damage = np.array([[0.0, 0.0], [0.1, 0.3], [np.inf, 0.5]])
    mild = sc.Curve("mild", (4, 2, 1), (0, 0.5, 0.75), damage / 10, damage)
    bad = sc.Curve("bad", (4, 2, 1), (0, 0.5, 0.75), damage, damage)
    found = sc.Scan({"mild": mild, "bad": bad}, metric="accuracy", others={"f1": {"bad": bad}}, after="repair")
    text = sc.plot(found, tmp_path / "curves.svg", tolerance=0.2).read_text()
    assert "accuracy lost (points) after repair" in text and text.index(">bad<") < text.index(">mild<")
    assert "f1 lost after repair" in sc.plot(found, tmp_path / "curves.svg", metric="f1").read_text()
    with pytest.raises(sc.ArgumentError, match="'mse' was not measured"):
        sc.plot(found, tmp_path / "curves.svg", metric="mse")
    assert "<title>" in curve_sheet([], "loss", share=False)
