"""The report as a browser and a screen reader meet it."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import pytest
from PIL import Image, UnidentifiedImageError

from cellfluxrl.evaluation.report.html import Section, Table, format_interval, write_report
from cellfluxrl.evaluation.statistics.intervals import Interval

ROWS = {
    "controls": [("0.040", "[0.032, 0.048]"), ("–", "")],
    "base": [("0.88", "[0.84, 0.92]"), ("6.2", "[5.2, 7.3]")],
    "real": [("0.912", "[0.904, 0.920]"), ("-0.93", "[-1.09, -0.77]")],
}
VOID = {"meta", "img", "wbr", "br"}


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.91234, 0.9043, 0.9203, 0.0041), ("0.912", "[0.904, 0.920]")),
        ((0.91234, 0.9094, 0.9153, 0.00149), ("0.9123", "[0.9094, 0.9153]")),  # a first digit of 1 keeps a second one
        ((0.91234, 0.8931, 0.9316, 0.0098), ("0.912", "[0.893, 0.932]")),
        ((951.8, 927.7, 975.9, 12.3), ("952", "[928, 976]")),
        ((951.8, 710.0, 1193.7, 123.4), ("952", "[710, 1194]")),
        ((-0.001, -0.08, 0.079, 0.04), ("0.00", "[-0.08, 0.08]")),  # no negative zero
        ((1.0, 1.0, 1.0, 0.0), ("1.000", "[1.000, 1.000]")),
        ((-0.1, -0.1, -0.1, 1e-17), ("-0.1000", "[-0.1000, -0.1000]")),
        ((6.2,), ("6.200", "")),
        ((math.nan, 0.1, 0.2, 0.1), ("–", "")),
    ],
)
def test_the_standard_error_decides_the_digits(interval, expected):
    assert format_interval(Interval(*interval)) == expected


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

    def write_with(title="Demo", findings=("RL raised the reward.",), settings=None, **replaced):
        pictures = []
        for i, caption in enumerate(['Cells, "outlined"', "Training curves"]):
            Image.new("RGB", (40 + i, 30)).save(tmp_path / f"{i}.png")
            pictures.append((caption, tmp_path / f"{i}.png"))
        section = {
            "title": "Measurements",
            "paragraphs": ["Compare with real cells."],
            "findings": ["Held out, holds. | Closer than the controls."],
            "tables": [Table("By reward", ["moa", "frechet"], ROWS, "real")],
            "notes": {"moa": "Probability of the true mechanism."},
            "pictures": pictures,
        }
        settings = {"seed": 7, "output_dir": None} if settings is None else settings
        write_report(tmp_path / "report.html", title, findings, [Section(**{**section, **replaced})], settings)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write_with


def test_report_says_everything_it_was_given(write):
    text = Page(write()).text
    for part in ("Demo", "RL raised the reward.", "Compare with real cells.", "Closer than the controls."):
        assert part in text
    for part in ("Probability of the true mechanism.", "0.912", "[0.904, 0.920]", "−0.93", "[−1.09, −0.77]"):
        assert part in text
    assert re.search(r"seed\s+7", text)
    assert "<strong>Held out, holds.</strong>" in write()


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


def test_a_folded_section_is_opened_by_its_heading(write):
    source = write(folded=True)
    Page(source)
    assert re.search(r"<details[^>]*>\s*<summary>\s*<h2[^>]*>Measurements</h2>\s*</summary>", source)
    assert not re.search(r"<summary>\s*<h2[^>]*>Measurements", write())


ATTACK = "<script>alert('x_y')</script>\"><img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    "replaced",
    [
        {"tables": [Table("", ["moa"], {ATTACK: [("0", "")]}, ATTACK)]},
        {"tables": [Table(ATTACK, [ATTACK], {"real": [(ATTACK, ATTACK)]})]},
        {"notes": {ATTACK: ATTACK}, "paragraphs": [ATTACK]},
        {"title": ATTACK, "findings": [ATTACK], "settings": {ATTACK: ATTACK}},
    ],
    ids=["row", "column", "note", "text"],
)
def test_names_are_shown_and_not_run(write, replaced):
    page = Page(write(**replaced))
    assert ATTACK in page.text.replace("−", "-")
    assert not page.all("script")
    assert len(page.all("img")) == 2


def test_captions_cannot_leave_their_attribute(write, tmp_path):
    write()
    images = Page(write(pictures=[(ATTACK, tmp_path / "0.png")])).all("img")
    assert [image["alt"] for image in images] == [ATTACK]
    assert "onerror" not in images[0]


def test_parts_without_content_have_no_heading(write):
    page = Page(write(pictures=[], settings={}, notes={}))
    assert not any(page.all(tag) for tag in ("figure", "details", "dl"))


def test_what_cannot_be_reported_is_named(write, tmp_path):
    with pytest.raises(ValueError, match="row 'real' of the table 'By reward' has 2 cells, not 1"):
        write(tables=[Table("By reward", ["moa"], {"real": ROWS["real"]})])
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    with pytest.raises(UnidentifiedImageError):
        write(pictures=[("A photo", tmp_path / "photo.jpg")])
