"""The picture of a scan: every group, its points where they belong, and nothing that it needs from outside."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import secateur as sc
from secateur.allocation.thresholds import BudgetCurve, choose
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


def picture(damage: list[float]) -> BudgetCurve:
    values = np.array(damage)
    return BudgetCurve((1.0, 0.8, 0.6, 0.4), values, np.full(4, 0.002), values / 2)


def selection(tolerance: float = 0.02) -> sc.Selection:
    pictures = {"random": picture([0, 0.02, 0.03, 0.5]), "way <taylor>": picture([0, 0.004, 0.01, 0.03])}
    choices = {name: choose(curve, tolerance) for name, curve in pictures.items()}
    return sc.Selection("way <taylor>", choices["way <taylor>"], pictures, choices, (), "because", tolerance)


def panels_of(text: str) -> list[ElementTree.Element]:
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "") and "href" not in text
    return ElementTree.fromstring(text).findall(f"{SVG}g")


def of_kind(panel: ElementTree.Element, tag: str, kind: str) -> list[ElementTree.Element]:
    return [e for e in panel.iter(SVG + tag) if e.get("class") == kind]


def test_a_selection_is_drawn_with_the_chosen_one_first_its_budget_and_the_tolerance(tmp_path: Path) -> None:
    text = sc.plot(selection(), tmp_path / "budgets.svg", metric="accuracy").read_text()
    assert "accuracy lost (points) against cost left, out of fold" in text
    first, second = panels_of(text)
    assert [p.find(f"{SVG}text").text for p in (first, second)] == ["way <taylor>, chosen", "random"]
    (ring,), (limit,) = of_kind(first, "circle", "chosen"), of_kind(first, "line", "limit")
    dots = of_kind(first, "circle", "dot")
    # 60 % is the third budget: the ring is around its dot, at half the height of the tolerance above the first.
    assert (ring.get("cx"), ring.get("cy")) == (dots[2].get("cx"), dots[2].get("cy"))
    zero, height = float(dots[0].get("cy")), float(limit.get("y1"))
    assert zero - float(ring.get("cy")) == pytest.approx((zero - height) / 2, abs=0.02)
    assert len(of_kind(first, "polygon", "band")) == 1 and len(of_kind(first, "polyline", "predicted")) == 1
    # The other reaches its first budget only; a tolerance that is given replaces that of the selection.
    (other,) = of_kind(second, "circle", "chosen")
    assert other.get("cx") == of_kind(second, "circle", "dot")[0].get("cx")
    wider = panels_of(sc.plot(selection(), tmp_path / "budgets.svg", tolerance=0.04).read_text())[0]
    assert float(of_kind(wider, "line", "limit")[0].get("y1")) != height
    assert not of_kind(panels_of(sc.plot(selection(np.inf), tmp_path / "b.svg").read_text())[0], "line", "limit")


def test_where_nothing_is_within_the_tolerance_no_budget_is_marked(tmp_path: Path) -> None:
    panel = panels_of(sc.plot(selection(0.0), tmp_path / "budgets.svg").read_text())[0]
    assert not of_kind(panel, "circle", "chosen") and len(of_kind(panel, "circle", "dot")) == 4


def test_one_curve_of_budgets_is_drawn(tmp_path: Path) -> None:
    (panel,) = panels_of(sc.plot(picture([0, 0.1, 0.2, np.inf]), tmp_path / "one.svg", tolerance=0.15).read_text())
    assert len(of_kind(panel, "circle", "dot")) == 3 and len(of_kind(panel, "line", "limit")) == 1
    assert not of_kind(panel, "circle", "chosen")


def test_a_front_is_drawn_with_what_is_beaten_and_the_cheapest_within_the_tolerance(tmp_path: Path) -> None:
    zeros = np.zeros((4, 2))
    curves = {"a": sc.Curve("a", (8, 4, 2, 1), (0, 0.5, 0.75, 0.875), zeros, zeros)}
    lost = {4: 0.02, 2: 0.01, 1: 0.04}
    found = sc.front(curves, lambda w: w["a"], measure=lambda w: (lost[w["a"]], 0.001), budgets=[0.5, 0.25, 0.125])
    (panel,) = panels_of(sc.plot(found, tmp_path / "front.svg", tolerance=0.02).read_text())
    (beaten,), (ring,) = of_kind(panel, "circle", "beaten"), of_kind(panel, "circle", "chosen")
    whole, smallest = of_kind(panel, "circle", "dot")
    places = [float(c.get("cx")) for c in (whole, beaten, ring, smallest)]
    assert places == sorted(places)
    heights = [float(whole.get("cy")) - float(c.get("cy")) for c in (ring, beaten, smallest)]
    assert heights == pytest.approx([heights[0], 2 * heights[0], 4 * heights[0]], abs=0.05)
    (limit,) = of_kind(panel, "line", "limit")
    assert float(limit.get("y1")) == pytest.approx(float(beaten.get("cy")))
    plain = panels_of(sc.plot(found, tmp_path / "front.svg").read_text())[0]
    assert len(of_kind(plain, "circle", "dot")) == 3 and not of_kind(plain, "line", "limit")
    # Half is beaten in the mean, but known better: it is what the tolerance asks for.
    known = sc.front(
        curves, lambda w: w["a"], measure=lambda w: (lost[w["a"]], 0.001 if w["a"] == 4 else 0.1), budgets=[0.5, 0.25]
    )
    rings = of_kind(panels_of(sc.plot(known, tmp_path / "f.svg", tolerance=0.03).read_text())[0], "circle", "chosen")
    assert [ring.get("r") for ring in rings] == ["5"] and len(known.best) == 2
    high = panels_of(sc.plot(found, tmp_path / "front.svg", tolerance=0.2).read_text())[0]
    assert 34 < float(of_kind(high, "line", "limit")[0].get("y1")) < 284
    assert panels_of(sc.plot(sc.Front(()), tmp_path / "none.svg").read_text())


def test_what_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    with pytest.raises(sc.ArgumentError, match=r"dict cannot be drawn: pass what sc\.scan, sc\.select or sc\.front"):
        sc.plot({}, tmp_path / "x.svg")  # type: ignore[arg-type]
    for wrong in (np.nan, "much"):
        with pytest.raises(sc.ArgumentError, match="tolerance="):
            sc.plot(selection(), tmp_path / "x.svg", tolerance=wrong)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
