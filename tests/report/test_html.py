import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from report.example import EVERY_PART, EVIL, bare, certificate, example
from secateur.report.html import MOST_CURVES, MOST_WIDTHS, render_html
from secateur.report.schema import ReportData

VOID = {"meta", "br", "hr", "img", "input", "link"}
SECTIONS = {
    "asked": {"asked"},
    "costs": {"costs"},
    "quality": {"costs"},
    "certificate": {"certificate"},
    "curves": {"curves"},
    "widths": {"widths"},
    "thresholds": {"thresholds"},
    "front": {"front", *(f"point-{k}" for k in range(5))},
    "rounds": {"rounds"},
    "controls": {"controls"},
    "left_alone": {"left-alone"},
    "coverage": {"left-alone"},
    "rewrites": {"rewrites"},
    "warnings": {"warnings"},
    "timings": {"timings"},
}
ALWAYS = {"made", "method"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def ids(self):
        return {a["id"] for _, a in self.tags if "id" in a and not a["id"].endswith("-title")}


def hostile():
    """Every string of the example replaced by one that tries to break out of its place."""

    def spoil(value):
        if isinstance(value, str):
            return f"{EVIL}\"'><img src=http://evil.example/x onerror=alert(1)>"
        if isinstance(value, list | tuple):
            return [spoil(v) for v in value]
        return {k: spoil(v) for k, v in value.items()} if isinstance(value, dict) else value

    raw = {k: v if k == "schema_version" else spoil(v) for k, v in example().model_dump().items()}
    raw["versions"] = {EVIL: EVIL}
    return ReportData.model_validate(raw)


@pytest.fixture(scope="module")
def text():
    return render_html(example())


def test_the_page_starts_with_its_doctype_and_nests(text):
    assert text.startswith("<!DOCTYPE html>")
    page = Page(text)
    assert page.named("html") == [{"lang": "en"}]


def test_names_are_escaped(text):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script" not in text
    assert EVIL in Page(text).text


@pytest.mark.parametrize("data", [example(), hostile(), bare()])
def test_nothing_runs_and_nothing_is_loaded(data):
    page = Page(render_html(data))
    assert {tag for tag, _ in page.tags} & {
        "script",
        "img",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
    } == set()
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "xlink:href")]
        assert attributes.get("href", "#").startswith("#")
        assert "url(" not in (attributes.get("style") or "")


def test_the_style_sheet_loads_nothing(text):
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_the_content_security_policy_forbids_all_but_inline_style(text):
    (policy,) = [a["content"] for a in Page(text).named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("style-src") == "'unsafe-inline'"
    assert set(rules.values()) == {"'none'"}


@pytest.mark.parametrize("data", [example(), hostile()])
def test_pictures_are_well_formed_and_named(data):
    pictures = re.findall(r'<svg class="plot".*?</desc>.*?</svg>(?=</div>|</figure>|\n)', render_html(data), re.DOTALL)
    assert len(pictures) == len(data.curves) + 3
    for picture in pictures:
        root = ET.fromstring(picture)
        assert root.get("role") == "img"
        assert root.find("title").text
        assert root.find("desc").text


def test_tables_have_captions_and_scopes(text):
    page = Page(text)
    assert len(page.named("table")) == len(page.named("caption")) > 5
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.named("th"))


def test_links_lead_to_sections_and_ids_are_unique(text):
    page = Page(text)
    found = [a["id"] for _, a in page.tags if "id" in a]
    assert len(found) == len(set(found))
    assert {a["href"].removeprefix("#") for a in page.named("a")} <= set(found)


@pytest.mark.parametrize("part", EVERY_PART)
def test_a_section_appears_when_its_data_is_there(part):
    only = bare().model_copy(update={part: getattr(example(), part)})
    assert Page(render_html(only)).ids() == ALWAYS | SECTIONS[part]


@pytest.mark.parametrize("part", sorted(set(EVERY_PART) - {"costs", "quality", "left_alone", "coverage"}))
def test_a_section_disappears_with_its_data(part):
    without = example().model_copy(update={part: getattr(bare(), part)})
    everything = ALWAYS.union(*SECTIONS.values())
    assert Page(render_html(without)).ids() == everything - SECTIONS[part]


def test_a_control_list_with_only_our_own_result_compares_nothing():
    alone = example().model_copy(update={"controls": example().controls[:1]})
    assert "controls" not in Page(render_html(alone)).ids()


def test_a_certificate_that_was_refused_looks_refused():
    text = render_html(example().model_copy(update={"certificate": certificate(certified=False)}))
    assert '<section id="certificate" class="refused"' in text
    assert "Not certified" in text
    assert "Not certified" not in render_html(example())


def test_a_certificate_without_a_tolerance_shows_none():
    def section(**changes):
        alone = certificate(tolerance=None, p_value=None, sentence="", **changes)
        text = render_html(bare().model_copy(update={"certificate": alone}))
        start = text.index('<section id="certificate"')
        return Page(text[start : text.index("</section>", start)] + "</section>").text

    assert "Certified bound" in section()
    assert "No bound" in section(certified=False)
    assert "tolerance" not in section() and "p not known" not in section()


def test_the_bound_of_a_certificate_is_rounded_up():
    text = render_html(example().model_copy(update={"certificate": certificate(bound=0.01012)}))
    assert "<dt>upper bound (points)</dt><dd>+1.02</dd>" in text


def test_curves_beyond_the_most_are_folded_away_not_dropped():
    text = render_html(example(MOST_CURVES + 7))
    page = Page(text)
    assert len(page.named("figure")) == MOST_CURVES + 7
    assert re.search(r"\b7 less sensitive groups", page.text)
    assert re.search(rf"\b{MOST_CURVES + 7 - MOST_WIDTHS} more groups", page.text)


def test_missing_values_are_dashes_and_are_said():
    row = example().rounds[2]
    text = Page(render_html(bare().model_copy(update={"rounds": [row]}))).text
    assert "–" in text
    assert "nan" not in text.lower()
    assert "None" not in text
    gap = example().curves[0].model_copy(update={"damage": [0.0] * 9 + [None]})
    assert "no value at 90 %" in Page(render_html(bare().model_copy(update={"curves": [gap]}))).text


def test_no_verdict_is_shown_in_words():
    rows = [r.model_copy(update={"verdict": "no verdict: the spreads overlap"}) for r in example().costs[3:]]
    text = Page(render_html(bare().model_copy(update={"costs": rows}))).text
    assert "no verdict: the spreads overlap" in text
    assert "faster" not in text


def test_the_same_data_gives_the_same_page():
    again = ReportData.model_validate_json(example().model_dump_json())
    assert render_html(again) == render_html(example())


def test_every_point_of_the_front_can_be_chosen_and_tells_what_it_keeps(text):
    page = Page(text)
    links = [a["href"] for a in page.named("a") if a.get("href", "").startswith("#point-")]
    # In the picture where there is a damage to place it by, in the table always.
    assert sorted(links) == sorted([f"#point-{k}" for k in range(4)] + [f"#point-{k}" for k in range(5)])
    panels = re.findall(r'<div class="point( here)?" id="(point-\d)">(.*?)</table>', text, re.DOTALL)
    assert [(name, bool(here)) for here, name, _ in panels] == [(f"point-{k}", k == 3) for k in range(5)]
    assert "<td>64</td><td>38</td>" in panels[2][2] and "30.0" in panels[2][2], "widths, and the other cost"


def test_the_interaction_at_the_chosen_budget_is_told(text):
    # 0.0081 together, 0.0062 one by one.
    assert "<dt>more than single damages add up to (points)</dt><dd>+0.19</dd>" in text
    unknown = example().model_copy(update={"thresholds": example().thresholds.model_copy(update={"chosen": 0.33})})
    assert unknown.thresholds.interaction is None and "single damages add up to" not in render_html(unknown)
