"""Links between pages lead somewhere; the site's builder checks those within docs/ once more."""

from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, links

OF_THE_SITE = {"contributing.md", "changelog.md"}  # pages that docs/hooks.py adds
MADE = {"api.md"}  # headings are made from docstrings


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if target.parent == ROOT / "docs" and target.name in OF_THE_SITE:
            continue
        assert target.exists(), link
        if anchor and target.name not in MADE:
            assert anchor in anchors(target), link


def test_every_reference_that_a_page_names_is_in_the_list() -> None:
    named = {link.partition("#")[2] for page in PAGES for link in links(page) if "references.md#" in link}
    assert named and named <= anchors(ROOT / "docs/references.md")
