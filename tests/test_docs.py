"""The pages of docs/ say what the package says."""

import re
import sys
from pathlib import Path

import nsa_kernel
import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\((?!https?:|#)(?P<path>[^)#]+)")
PAGES = [page for folder in (".", "docs", "benchmarks", "tests") for page in sorted((ROOT / folder).glob("*.md"))]

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="there are no pages here")


def test_the_page_of_public_names_is_what_the_script_makes(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DOCS), *sys.path])
    import make_api  # noqa: PLC0415 (it is there where the pages are)

    assert (DOCS / "api.md").read_text() == make_api.page(), "run `python docs/make_api.py`"


def test_every_public_name_has_a_place_on_the_page():
    page = (DOCS / "api.md").read_text()
    for name in nsa_kernel.__all__:
        assert f"## {name}\n" in page or f"under the name `{name}`" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_somewhere(page):
    missing = {link["path"] for link in LINK.finditer(page.read_text()) if not (page.parent / link["path"]).exists()}
    assert not missing
