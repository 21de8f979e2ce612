"""The table for the terminal, and the report as a browser and a screen reader meet it."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import pytest
from PIL import Image, UnidentifiedImageError

from cellfluxrl.evaluation.report.html import format_measurement, format_table, write_report

ROWS = {
    "controls": {"moa": (0.04, 0.0041)},
    "base": {"moa": (0.88, 0.021), "frechet": (6.24, 0.52)},
    "real": {"moa": (0.9124, 0.0039), "frechet": (-0.93, 0.083)},
}
VOID = {"meta", "img", "wbr", "br"}


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (0.91234, 0.0041, ("0.912", "± 0.004")),
        (0.91234, 0.00149, ("0.9123", "± 0.0015")),  # a first digit of 1 keeps a second one
        (0.91234, 0.0098, ("0.912", "± 0.010")),
        (951.8, 12.3, ("952", "± 12")),
        (951.8, 123.4, ("952", "± 123")),
        (3.0, 1.24, ("3.0", "± 1.2")),
        (-0.001, 0.04, ("0.00", "± 0.04")),  # no negative zero
        (1.0, 0.0, ("1.000", "± 0.000")),
        (-0.1, 1e-17, ("-0.1000", "± 0.0000")),
        (6.2, math.nan, ("6.200", "")),
        (math.nan, 0.1, ("–", "")),
    ],
)
def test_the_standard_error_decides_the_digits(value, error, expected):
    assert format_measurement(value, error) == expected


def test_table_is_aligned_and_marks_what_was_not_measured():
    assert format_table(ROWS, ["moa", "frechet"]).splitlines() == [
        "                    moa       frechet",
        "--------  -------------  ------------",
        "controls  0.040 ± 0.004      –",
        "base       0.88 ± 0.02     6.2 ± 0.5",
        "real      0.912 ± 0.004  -0.93 ± 0.08",
    ]


def test_a_column_that_no_row_has_is_named():
    with pytest.raises(ValueError, match="unknown column 'frechett'; did you mean 'frechet'"):
        format_table(ROWS, ["frechett"])


class Page(HTMLParser):
    """Elements as (tag, attributes), all text, and whether every tag is closed in order."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def write(tmp_path):
    """Write a report with some parts replaced; returns its source."""

    def write_with(**replaced):
        pictures = []
        for i, caption in enumerate(['Cells, "outlined"', "Training curves"]):
            Image.new("RGB", (40 + i, 30)).save(tmp_path / f"{i}.png")
            pictures.append((caption, tmp_path / f"{i}.png"))
        parts = {
            "title": "Demo",
            "rows": ROWS,
            "columns": ["moa", "frechet"],
            "column_notes": {"moa": "Probability of the true mechanism."},
            "pictures": pictures,
            "findings": ["RL raised the reward."],
            "settings": {"seed": 7, "output_dir": None},
        }
        write_report(tmp_path / "report.html", **{**parts, **replaced})
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write_with


def test_report_says_everything_it_was_given(write):
    text = Page(write()).text
    for part in ("Demo", "RL raised the reward.", "Probability of the true mechanism.", "0.912", "± 0.004", "−0.93"):
        assert part in text
    assert re.search(r"seed\s+7", text)
    assert "over-optimisation, not biology" in text


def test_report_loads_nothing(write):
    source = write()
    page = Page(source)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r'src="data:[^"]*"', "", source))
    assert not page.all("script")
    assert not page.all("link")
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policies[0]


def test_pictures_are_inside_with_alternative_texts(write):
    images = Page(write()).all("img")
    assert [image["alt"] for image in images] == ['Cells, "outlined"', "Training curves"]
    for image, width in zip(images, (40, 41), strict=True):
        content = base64.b64decode(image["src"].partition(",")[2])
        assert Image.open(io.BytesIO(content)).size == (width, 30) == (int(image["width"]), int(image["height"]))


def test_table_is_accessible(write):
    page = Page(write())
    assert [header["scope"] for header in page.all("th")] == ["col"] * 3 + ["row"] * 3
    assert page.all("caption")
    assert page.all("html")[0]["lang"] == "en"


def test_only_the_real_cells_are_marked(write):
    source = write()
    marked = re.findall(r'<tr class="reference">\s*<th scope="row">(\w+)', source)
    assert marked == ["real"]
    renamed = {"treated": ROWS["real"], "base": ROWS["base"]}
    assert re.search(r'<tr class="reference">\s*<th scope="row">treated', write(rows=renamed, reference="treated"))


ATTACK = "<script>alert('x_y')</script>\"><img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    "replaced",
    [
        {"rows": {ATTACK: ROWS["base"], "real": ROWS["real"]}},
        {"rows": {ATTACK: ROWS["base"]}, "reference": ATTACK},
        {"rows": {"real": {ATTACK: (0.0, 0.1)}}, "columns": [ATTACK], "column_notes": {ATTACK: ATTACK}},
        {"title": ATTACK, "findings": [ATTACK], "settings": {ATTACK: ATTACK}},
    ],
    ids=["row", "reference", "column", "text"],
)
def test_names_are_shown_and_not_run(write, replaced):
    page = Page(write(**replaced))
    assert ATTACK in page.text
    assert not page.all("script")
    assert len(page.all("img")) == 2


def test_captions_cannot_leave_their_attribute(write, tmp_path):
    write()
    images = Page(write(pictures=[(ATTACK, tmp_path / "0.png")])).all("img")
    assert [image["alt"] for image in images] == [ATTACK]
    assert "onerror" not in images[0]


def test_parts_without_content_have_no_heading(write):
    page = Page(write(pictures=[], settings={}, column_notes={}))
    assert not any(page.all(tag) for tag in ("figure", "details", "dl"))


def test_what_cannot_be_reported_is_named(write, tmp_path):
    with pytest.raises(ValueError, match="unknown reference row 'reall'; did you mean 'real'"):
        write(reference="reall")
    with pytest.raises(ValueError, match="unknown column 'mo'"):
        write(columns=["mo"], column_notes={})
    with pytest.raises(ValueError, match="unknown column 'containment'"):
        write(column_notes={"containment": "Not shown."})
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    with pytest.raises(UnidentifiedImageError):
        write(pictures=[("A photo", tmp_path / "photo.jpg")])
