"""The pictures of docs/ are what their script draws, with the numbers that the library writes."""

import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[1] / "docs"

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="there are no pages here")


def test_the_pictures_are_what_the_script_draws():
    drawn = runpy.run_path(str(DOCS / "pictures.py"))["drawn"]()
    kept = {path.name: path.read_text() for path in (DOCS / "pictures").iterdir()}
    assert kept == drawn, "run `python docs/pictures.py`"


def test_nothing_lies_outside_a_picture():
    for path in (DOCS / "pictures").iterdir():
        svg = ElementTree.parse(path).getroot()
        width, height = float(svg.get("width")), float(svg.get("height"))
        for part in svg:
            if part.tag.endswith("text"):
                half = {"middle": 0.5}.get(part.get("text-anchor"), 1) * len(part.text or "") * 7.3  # of a font of 12
                assert float(part.get("x")) + half <= width, (path.name, part.text)
                assert float(part.get("y")) <= height, (path.name, part.text)
